//! What is in which package. Paths in the repository are from its root, paths on the host from the host's.

/// One package.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// A line, and what follows it in deb-control(5)'s form.
    pub description: &'static str,
    /// Packages that it needs besides the C library.
    pub depends: &'static [&'static str],
    /// Packages that most hosts will want with it.
    pub recommends: &'static [&'static str],
    /// What it puts on the host.
    pub files: &'static [PackagedFile],
    /// Where its maintainer scripts lie.
    pub scripts_folder: &'static str,
    /// Their names.
    pub scripts: &'static [&'static str],
}

/// A file on the host.
pub struct PackagedFile {
    /// Where it will lie, without the leading slash. In `etc/` it becomes the administrator's.
    pub path: &'static str,
    /// What is in it.
    pub content: Content,
    /// Permissions; the owner is root.
    pub mode: u32,
}

/// Where a file's content comes from.
#[derive(Clone, Copy)]
pub enum Content {
    /// A program that cargo built, by name.
    Program(&'static str),
    /// A file of the repository.
    File(&'static str),
    /// Itself.
    Text(&'static str),
    /// What a program that cargo built prints.
    Output(&'static str, &'static [&'static str]),
}

const fn file(path: &'static str, source: &'static str) -> PackagedFile {
    PackagedFile { path, content: Content::File(source), mode: 0o644 }
}

const fn program(path: &'static str, name: &'static str) -> PackagedFile {
    PackagedFile { path, content: Content::Program(name), mode: 0o755 }
}

/// All of them.
pub const PACKAGES: &[Package] = &[
    Package {
        name: "breakglass-agent",
        description: "emergency access to this host, and its record\n \
                      Lets operators in as the emergency account after a proof that the host itself checks, records\n \
                      everything that is done there, and locks again. See /usr/share/doc/breakglass-agent.",
        // The account is made with useradd; the gate hangs in PAM's profiles; the drop-in needs sshd.
        depends: &["openssh-server", "passwd", "libpam-runtime", "libpam-modules", "init-system-helpers"],
        recommends: &["systemd", "sudo"],
        files: &[
            program("usr/sbin/breakglass-agent", "breakglass-agent"),
            file("usr/lib/systemd/system/breakglass-agent.service", "agent/dist/breakglass-agent.service"),
            file("usr/lib/systemd/system/breakglass-lock.service", "agent/dist/breakglass-lock.service"),
            file("usr/share/pam-configs/breakglass", "agent/dist/pam-configs/breakglass"),
            file("etc/ssh/sshd_config.d/00-breakglass.conf", "agent/dist/00-breakglass.sshd.conf"),
            PackagedFile {
                path: "etc/breakglass/agent.toml",
                content: Content::File("agent/dist/agent.toml"),
                mode: 0o600,
            },
            PackagedFile {
                path: "etc/breakglass/allowed_signers",
                content: Content::Text(
                    "# Who may break the glass, one line a person; see ssh-keygen(1), ALLOWED SIGNERS:\n\
                     # alice@example.org namespaces=\"breakglass-grant@v1,breakglass-close@v1\" ssh-ed25519 AAAA...\n",
                ),
                mode: 0o600,
            },
            PackagedFile {
                path: "etc/sudoers.d/breakglass",
                content: Content::File("agent/dist/sudoers"),
                mode: 0o440,
            },
            file("usr/share/doc/breakglass-agent/ACCESS.md", "docs/ACCESS.md"),
            file("usr/share/doc/breakglass-agent/README.md", "README.md"),
            file("usr/share/doc/breakglass-agent/copyright", "LICENSE"),
        ],
        scripts_folder: "agent/dist/debian",
        scripts: &["postinst", "prerm", "postrm"],
    },
    Package {
        name: "breakglass-collector",
        description: "keeps and searches what Breakglass agents record\n \
                      Takes the records of emergency sessions from the hosts' agents, keeps them as they came, and\n \
                      answers the security team's questions about them.",
        depends: &["passwd", "init-system-helpers"],
        recommends: &["systemd"],
        files: &[
            program("usr/bin/breakglass-collector", "breakglass-collector"),
            file("usr/lib/systemd/system/breakglass-collector.service", "collector/dist/breakglass-collector.service"),
            file("usr/share/doc/breakglass-collector/COLLECTOR.md", "docs/COLLECTOR.md"),
            file("usr/share/doc/breakglass-collector/copyright", "LICENSE"),
        ],
        scripts_folder: "collector/dist/debian",
        scripts: &["postinst", "prerm", "postrm"],
    },
    Package {
        name: "breakglass",
        description: "break the glass on a host, and review who did\n \
                      The one command for operators and the security team.",
        depends: &["openssh-client"],
        recommends: &[],
        files: &[
            program("usr/bin/breakglass", "breakglass"),
            PackagedFile {
                path: "usr/share/bash-completion/completions/breakglass",
                content: Content::Output("breakglass", &["completions", "bash"]),
                mode: 0o644,
            },
            file("usr/share/doc/breakglass/CLI.md", "docs/CLI.md"),
            file("usr/share/doc/breakglass/copyright", "LICENSE"),
        ],
        scripts_folder: "collector/cli",
        scripts: &[],
    },
];
