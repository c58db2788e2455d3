//! What tests and demonstration need from the system, installed where it is missing.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

/// A program and the Debian package that has it.
struct Needed {
    program: &'static str,
    package: &'static str,
}

/// The account tools, a server and a client to log in with, sudo, an editor, interpreters and a compiler to use inside.
const NEEDED: &[Needed] = &[
    Needed { program: "sshd", package: "openssh-server" },
    Needed { program: "ssh", package: "openssh-client" },
    Needed { program: "ssh-keygen", package: "openssh-client" },
    Needed { program: "sudo", package: "sudo" },
    Needed { program: "visudo", package: "sudo" },
    Needed { program: "useradd", package: "passwd" },
    Needed { program: "setsid", package: "util-linux" },
    Needed { program: "setpriv", package: "util-linux" },
    Needed { program: "unshare", package: "util-linux" },
    Needed { program: "gcc", package: "gcc" },
    Needed { program: "python3", package: "python3" },
    Needed { program: "tmux", package: "tmux" },
    Needed { program: "vi", package: "vim-tiny" },
    Needed { program: "perl", package: "perl" },
];

/// Where programs are looked for; not `PATH`, which may lack the `sbin` folders.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Installs what is missing, saying so. Where it cannot, it says that too, and what needs it is skipped later.
pub fn ensure_installed() -> Result<()> {
    let packages = missing(|program| FOLDERS.iter().any(|folder| Path::new(folder).join(program).exists()));
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        println!("==> missing: {list}. Install them, or run this as root on a system with apt-get.");
        return Ok(());
    }
    println!("==> installing with apt-get: {list}");
    if apt_get(&["install"], &packages)? {
        return Ok(());
    }
    println!("==> refreshing apt-get's lists, and once more");
    if !(apt_get(&["update"], &[])? && apt_get(&["install"], &packages)?) {
        println!("==> apt-get could not install them; what needs them is skipped");
    }
    Ok(())
}

/// Packages whose programs are not there, each once.
fn missing(installed: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        NEEDED.iter().filter(|needed| !installed(needed.program)).map(|needed| needed.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt_get(arguments: &[&str], packages: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command.args(["--quiet=2", "--yes", "--no-install-recommends"]).args(arguments).args(packages);
    let status = command.env("DEBIAN_FRONTEND", "noninteractive").status().context("cannot run apt-get")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_package_is_named_once() {
        assert_eq!(missing(|program| !program.starts_with("ssh")), ["openssh-client", "openssh-server"]);
        assert!(missing(|_| true).is_empty());
    }
}
