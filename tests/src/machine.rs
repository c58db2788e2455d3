//! What this machine has, and what runs on it.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, FsType, SECURITYFS_MAGIC, TMPFS_MAGIC, TRACEFS_MAGIC, statfs},
    time::{ClockId, clock_gettime},
};

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Being root.
    Root,
    /// OpenSSH's server and client.
    Ssh,
    /// `sudo` with PAM.
    Sudo,
    /// A kernel that loads the programs of tier `basic`.
    Bpf,
    /// A program in one of the usual folders.
    Program(&'static str),
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Start, in clock ticks since boot.
    pub start: u64,
}

/// Where programs are looked for; not `PATH`, which may lack the `sbin` folders.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Need {
    /// Why the machine does not have it; nothing if it has.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".into()),
            Self::Ssh => ["sshd", "ssh", "ssh-keygen"].into_iter().find_map(|name| Self::Program(name).missing()),
            Self::Sudo => Self::Program("sudo").missing(),
            Self::Bpf => (!Path::new("/sys/kernel/btf/vmlinux").exists()).then(|| "this kernel has no BTF".into()),
            Self::Program(name) => find_program(name).is_none().then(|| format!("{name} is not installed")),
        }
    }
}

/// Path of a program, if it is installed.
pub fn find_program(name: &str) -> Option<String> {
    FOLDERS.into_iter().map(|folder| format!("{folder}/{name}")).find(|path| Path::new(path).exists())
}

/// Path of a program that must be there.
pub fn program(name: &str) -> Result<String> {
    find_program(name).with_context(|| format!("{name} is not installed"))
}

/// Mounts what the kernel programs need, where it is missing. These are the system's usual mounts; they stay.
pub fn mount_kernel_filesystems() -> Result<()> {
    for (path, kind, magic) in [
        ("/sys/fs/bpf", "bpf", BPF_FS_MAGIC),
        ("/sys/kernel/tracing", "tracefs", TRACEFS_MAGIC),
        ("/sys/kernel/security", "securityfs", SECURITYFS_MAGIC),
    ] {
        if mounted(path, magic) {
            continue;
        }
        match mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>) {
            // Two tests begin at once: the other one was faster.
            Err(Errno::EBUSY) if mounted(path, magic) => {}
            mounting => mounting.with_context(|| format!("cannot mount {kind} at {path}"))?,
        }
    }
    Ok(())
}

/// Mounts a memory disk of `size` ("6m") at a folder, or changes the size of the one that is there.
pub fn mount_memory_disk(folder: &Path, size: &str) -> Result<()> {
    let again = if mounted(folder, TMPFS_MAGIC) { MsFlags::MS_REMOUNT } else { MsFlags::empty() };
    let options = format!("mode=0700,size={size}");
    mount(Some("tmpfs"), folder, Some("tmpfs"), again, Some(options.as_str()))
        .with_context(|| format!("cannot mount a memory disk at {}", folder.display()))
}

/// Makes an ext4 of `size` ("48m") in a file and mounts it at a folder: a disk that can be frozen, as one in memory cannot.
pub fn mount_file_disk(folder: &Path, file: &Path, size: &str) -> Result<()> {
    run(Command::new("truncate").args(["-s", &size.to_uppercase()]).arg(file))?;
    run(Command::new("mkfs.ext4").arg("-q").arg(file))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(file).arg(folder))?;
    fs::remove_dir(folder.join("lost+found")).context("cannot empty the new disk")?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).context("cannot close the new disk to others")
}

/// Makes a mounted disk read-only; mounting it again makes it writable.
pub fn make_read_only(folder: &Path) -> Result<()> {
    mount(None::<&str>, folder, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
        .with_context(|| format!("cannot make {} read-only", folder.display()))
}

fn mounted(path: impl AsRef<Path>, magic: FsType) -> bool {
    statfs(path.as_ref()).is_ok_and(|found| found.filesystem_type() == magic)
}

/// Nanoseconds on the boot clock.
pub fn boot_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Start time of a live process (field 22 of `/proc/PID/stat`); a zombie is not live.
pub fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, so what counts comes after the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Processor time that a process has used, in seconds (user and system).
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("a stat line without a name")?.1;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick rate")?;
    Ok(ticks as f64 / hertz as f64)
}

/// A line of `/proc/PID/status` that counts kibibytes, such as `RssAnon`.
pub fn memory_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let text = line.with_context(|| format!("/proc/{pid}/status has no {field}"))?;
    text.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("{field}: {text}"))
}

/// Live processes whose real user or audit login user is `uid`.
pub fn processes_of(uid: u32) -> Vec<Process> {
    processes(|pid| belongs(pid, uid))
}

/// Live processes with exactly these arguments.
pub fn processes_with(arguments: &[&str]) -> Vec<Process> {
    let wanted: Vec<u8> = arguments.iter().flat_map(|argument| [argument.as_bytes(), b"\0"].concat()).collect();
    processes(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted))
}

fn processes(fits: impl Fn(i32) -> bool) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| fits(*pid))
        .filter_map(|pid| Some(Process { pid, start: start_of(pid)? }))
        .collect()
}

fn belongs(pid: i32, uid: u32) -> bool {
    let by_login = fs::read_to_string(format!("/proc/{pid}/loginuid")).is_ok_and(|text| text.trim() == uid.to_string());
    let by_user = fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .is_some_and(|ids| ids.split_whitespace().next() == Some(uid.to_string().as_str()))
    });
    by_login || by_user
}

/// Runs a command to its end and gives what it printed; fails with what it complained of.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let own = Process { pid: std::process::id() as i32, start: start_of(std::process::id() as i32).unwrap() };
        assert!(processes_of(nix::unistd::getuid().as_raw()).contains(&own));
        assert!(memory_kib(std::process::id(), "VmRSS").unwrap() > 0);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }

    #[test]
    fn a_missing_program_is_named() {
        assert_eq!(Need::Program("no-such-program").missing().as_deref(), Some("no-such-program is not installed"));
    }
}
