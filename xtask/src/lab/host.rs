//! What the lab uses of the host: its programs, its folders, and a voice on its terminal.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// A program and the Debian package that has it.
pub struct Tool {
    program: &'static str,
    package: &'static str,
}

/// Needed to run a guest.
pub const RUN_TOOLS: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Tool { program: "setpriv", package: "util-linux" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "debugfs", package: "e2fsprogs" },
    Tool { program: "strip", package: "binutils" },
];

/// Needed to build the image.
pub const BUILD_TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "dpkg-deb", package: "dpkg" },
    Tool { program: "cpio", package: "cpio" },
    Tool { program: "xz", package: "xz-utils" },
];

/// Needed where the host's C library is newer than the guest's.
pub const LIBC_TOOLS: &[Tool] = &[Tool { program: "patchelf", package: "patchelf" }];

/// Prints one line of progress.
pub fn say(text: &str) {
    println!("lab: {text}");
}

/// A command that finds programs in the `sbin` folders too, which are not in everybody's `PATH`, and speaks English.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Runs a command to its end and gives what it printed; fails with what it complained of.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}\n{}", line(command), output.status, complaint.trim(), tail(&printed, 20));
    }
    Ok(printed)
}

/// A command as somebody would type it, without its environment.
pub fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    words.join(" ".as_ref()).to_string_lossy().into_owned()
}

/// The last `count` lines of a text.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(count)).map(|line| format!("{line}\n")).collect()
}

/// Makes a folder and those above it.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Writes a whole file.
pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a whole file unless it has that text already: others may be reading it.
pub fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    match fs::read_to_string(path) {
        Ok(old) if old == text => Ok(()),
        _ => write(path, text),
    }
}

/// Copies a file.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Removes a folder if it is there.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Installs the packages of the tools that are missing, and says so.
pub fn install_missing(tools: &[Tool]) -> Result<()> {
    let mut packages: Vec<&str> = tools.iter().filter(|tool| !found(tool.program)).map(|tool| tool.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    ensure!(found("apt-get"), "missing here, and there is no apt-get to install them with: {list}");
    ensure!(
        nix::unistd::geteuid().is_root(),
        "missing here; as root, run: apt-get install --no-install-recommends {list}"
    );
    let install = |options: &[&str]| {
        run(command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-y", "--no-install-recommends", "install"])
            .args(options)
            .args(&packages))
    };
    let plan = match install(&["--simulate"]) {
        Ok(plan) => plan,
        Err(_) => {
            say("fetching the host's package lists");
            run(command("apt-get").args(["-q", "update"]))?;
            install(&["--simulate"])?
        }
    };
    let removed: Vec<&str> = plan.lines().filter_map(|line| line.strip_prefix("Remv ")).collect();
    say(&format!("installing on this machine: {list}"));
    if !removed.is_empty() {
        say(&format!("apt-get removes what conflicts with them: {}", removed.join(", ")));
    }
    install(&[]).map(drop)
}

fn found(program: &str) -> bool {
    std::env::split_paths(&path()).any(|folder| folder.join(program).is_file())
}

/// Makes what a guest sent fit to print: control characters cannot reach the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\t' { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_says_what_it_complained_of() {
        let error = run(command("sh").args(["-c", "echo out; echo trouble >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("trouble") && error.contains("out") && error.contains('3'), "{error}");
    }

    #[test]
    fn tail_gives_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc\n");
        assert_eq!(tail("a", 2), "a\n");
    }

    #[test]
    fn escape_sequences_are_neutralised() {
        assert_eq!(printable("\x1b[2Jhello\tworld"), "\u{fffd}[2Jhello\tworld");
    }
}
