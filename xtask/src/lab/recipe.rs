//! What the guest is made of, and the name under which a guest made of it is kept.
//!
//! The name is a hash over this recipe and over the exact versions of every package that apt would install for it. apt is asked
//! with package lists of the lab's own, so the answer does not depend on the host's distribution, costs no network after the first
//! time and changes only when somebody asks for newer packages (`cargo xtask lab build --update`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{host, initrd};

/// Debian release of the guest.
pub const RELEASE: &str = "bookworm";

/// The keys that its archives are signed with, from the package `debian-archive-keyring`.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Another mirror of the release and its updates.
const MIRROR_VARIABLE: &str = "BREAKGLASS_LAB_MIRROR";

/// Packages beside the minimal base system. What a test needs is added here; everything costs build time and image size, nothing
/// costs boot time that brings no unit.
pub const PACKAGES: &[&str] = &[
    // The system that the agent has to hold its ground on.
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "postgresql",
    "auditd",
    "cron",
    "at",
    "tmux",
    // What an operator gets around an audit with.
    "openssh-client",
    "python3",
    "python3-pexpect",
    "perl",
    "gcc",
    "libc6-dev",
    "bpftool",
    "strace",
    "socat",
    "util-linux",
    "bsdutils",
    "kmod",
    "procps",
    "iproute2",
    "libcap2-bin",
    "less",
    "vim-tiny",
    "crun",
    "busybox-static",
    // What others record a session with, for comparison.
    "tlog",
];

/// Units that only slow the boot: nothing in the guest has a screen, an update, a second disk or a tomorrow.
pub const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "cryptsetup.target",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty.target",
    "integritysetup.target",
    "proc-sys-fs-binfmt_misc.automount",
    "remote-fs.target",
    "serial-getty@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journal-flush.service",
    "systemd-machine-id-commit.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-repart.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "veritysetup.target",
    "dev-hugepages.mount",
];

/// A file that the image gets on top of its packages.
pub struct GuestFile {
    /// Path in the guest, from its root.
    pub path: &'static str,
    /// What is in it.
    pub text: &'static str,
    /// Permissions.
    pub mode: u32,
}

/// Everything that is put on top of the packages.
pub const FILES: &[GuestFile] = &[
    GuestFile { path: "etc/fstab", text: "", mode: 0o644 },
    GuestFile { path: "etc/hostname", text: "lab\n", mode: 0o644 },
    GuestFile { path: "etc/hosts", text: "127.0.0.1 localhost lab\n::1 localhost\n", mode: 0o644 },
    GuestFile { path: "etc/systemd/system/lab.service", text: include_str!("guest/lab.service"), mode: 0o644 },
    GuestFile { path: "etc/systemd/system/lab.target", text: include_str!("guest/lab.target"), mode: 0o644 },
    GuestFile {
        path: "etc/systemd/system/postgresql@.service.d/lab.conf",
        text: include_str!("guest/postgresql.conf"),
        mode: 0o644,
    },
    GuestFile { path: "etc/systemd/system/ssh.service.d/lab.conf", text: include_str!("guest/ssh.conf"), mode: 0o644 },
    GuestFile { path: "usr/local/sbin/lab-guest", text: include_str!("guest/lab-guest"), mode: 0o755 },
    GuestFile { path: "root/.hushlogin", text: "", mode: 0o644 },
];

/// Raised when the code that builds an image changes what comes out of it.
const FORMAT: u32 = 1;

/// There once package lists were fetched.
const LISTS_STAMP: &str = "apt/updated";

/// A stock kernel that the lab boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As users name it and as its release begins.
    pub name: &'static str,
    /// Debian's package that depends on the newest build of it.
    pub meta_package: &'static str,
}

/// Every kernel of the lab.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "6.1", meta_package: "linux-image-cloud-amd64" },
    Kernel { name: "6.12", meta_package: "linux-image-6.12-cloud-amd64" },
];

/// A recipe with every version decided.
pub struct Resolved {
    /// Names the image: 16 hexadecimal digits.
    pub key: String,
    /// The package of each kernel in [`KERNELS`].
    pub kernel_packages: Vec<(Kernel, String)>,
}

/// apt with lists of the lab's own.
pub struct Apt {
    config: PathBuf,
    /// Where archives come from, in the form of `sources.list`.
    pub sources: PathBuf,
}

impl Apt {
    /// Makes its folder below `cache`; fetches package lists when there are none or `update` asks for it.
    pub fn open(cache: &Path, update: bool) -> Result<Self> {
        let root = cache.join("apt");
        for folder in ["lists/partial", "archives/partial", "etc"] {
            host::make_folder(&root.join(folder))?;
        }
        let apt = Self { config: root.join("apt.conf"), sources: root.join("sources.list") };
        host::write_if_changed(&apt.sources, &sources())?;
        host::write_if_changed(&root.join("status"), "")?;
        host::write_if_changed(&apt.config, &configuration(&root))?;
        let stamp = cache.join(LISTS_STAMP);
        if update || !stamp.exists() {
            host::say("fetching package lists");
            host::run(host::command("apt-get").env("APT_CONFIG", &apt.config).args(["-q", "update"]))?;
            host::write(&stamp, "")?;
        }
        Ok(apt)
    }

    /// Whether package lists were ever fetched.
    pub fn has_lists(cache: &Path) -> bool {
        cache.join(LISTS_STAMP).exists()
    }

    /// Decides every version.
    pub fn resolve(&self) -> Result<Resolved> {
        let metas = KERNELS.iter().map(|kernel| kernel.meta_package);
        let names: Vec<&str> = PACKAGES.iter().copied().chain(metas).collect();
        let plan = host::run(
            host::command("apt-get")
                .env("APT_CONFIG", &self.config)
                .args(["-q", "--simulate", "install", "?essential"])
                .args(&names),
        )?;
        let mut installed: Vec<&str> = plan.lines().filter_map(|line| line.strip_prefix("Inst ")).collect();
        installed.sort_unstable();
        ensure!(!installed.is_empty(), "apt-get would install nothing; it said:\n{plan}");
        let kernel_packages = KERNELS
            .iter()
            .map(|kernel| Ok((*kernel, kernel_package(&installed, *kernel)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Resolved { key: key(&installed), kernel_packages })
    }

    /// Fetches one package into `folder` and gives the path of the archive.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        host::make_folder(folder)?;
        host::run(host::command("apt-get").env("APT_CONFIG", &self.config).current_dir(folder).args([
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            package,
        ]))
        .context("the archive may have moved on since its lists were fetched: try `cargo xtask lab build --update`")?;
        let found = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|ending| ending == "deb"));
        found.with_context(|| format!("apt-get fetched {package} but left no archive in {}", folder.display()))
    }
}

fn sources() -> String {
    let mirror = std::env::var(MIRROR_VARIABLE).unwrap_or_else(|_| "http://deb.debian.org/debian".into());
    let security = "http://deb.debian.org/debian-security";
    [
        (mirror.as_str(), RELEASE.to_owned()),
        (&mirror, format!("{RELEASE}-updates")),
        (security, format!("{RELEASE}-security")),
    ]
    .iter()
    .map(|(site, suite)| format!("deb [arch=amd64 signed-by={KEYRING}] {site} {suite} main\n"))
    .collect()
}

/// Everything that apt would take from the host is pointed elsewhere; the empty status file makes it plan for an empty system.
fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        "Dir::Etc \"{root}/etc\";\nDir::Etc::SourceList \"{root}/sources.list\";\nDir::State::Lists \"{root}/lists\";\n\
         Dir::State::Status \"{root}/status\";\nDir::Cache \"{root}\";\nAPT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\nAPT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\n\
         APT::Get::List-Cleanup \"false\";\n"
    )
}

/// Finds the package with the kernel itself among `Inst` lines such as `linux-image-6.1.0-56-cloud-amd64 (6.1.192-2 …)`.
fn kernel_package(installed: &[&str], kernel: Kernel) -> Result<String> {
    let start = format!("linux-image-{}.", kernel.name);
    let mut names = installed.iter().filter_map(|line| line.split_whitespace().next());
    match names.find(|name| name.starts_with(&start) && name.ends_with("-cloud-amd64")) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("{} no longer brings a package {start}*-cloud-amd64", kernel.meta_package),
    }
}

fn key(installed: &[&str]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&FORMAT.to_string());
    installed.iter().for_each(|line| add(line));
    MASKED.iter().for_each(|unit| add(unit));
    for file in FILES {
        add(file.path);
        add(file.text);
        add(&format!("{:o}", file.mode));
    }
    add(initrd::INIT);
    hex::encode(hash.finalize()).chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &[&str] = &[
        "linux-image-6.1.0-56-cloud-amd64 (6.1.192-2 Debian-Security:12/oldstable-security [amd64])",
        "linux-image-6.12-cloud-amd64 (6.12.117-1~deb12u1 Debian-Security:12/oldstable-security [amd64])",
        "linux-image-6.12.117+deb12-cloud-amd64 (6.12.117-1~deb12u1 Debian-Security:12/oldstable-security [amd64])",
    ];

    #[test]
    fn the_kernel_and_not_its_meta_package_is_found() {
        assert_eq!(kernel_package(PLAN, KERNELS[0]).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(kernel_package(PLAN, KERNELS[1]).unwrap(), "linux-image-6.12.117+deb12-cloud-amd64");
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let error = kernel_package(&PLAN[..1], KERNELS[1]).unwrap_err();
        assert!(error.to_string().contains("linux-image-6.12."), "{error}");
    }

    #[test]
    fn a_version_changes_the_key() {
        assert_ne!(key(&["libc6 (1)"]), key(&["libc6 (2)"]));
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
    }
}
