//! procfs as the kernel shows it, whatever anybody mounts over `/proc`.
//!
//! Root of a session may mount over `/proc`, or over the folder of one process, in the agent's own mount namespace, and so hide that process
//! from whoever goes by paths. The agent has an instance of its own that is attached nowhere (fsopen(2), fsmount(2)): nobody can mount
//! over any of it.

use std::{
    fs::{File, Metadata},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::PathBuf,
    sync::OnceLock,
};

use rustix::{
    fs::{CWD, Dir, Mode, OFlags, openat, readlinkat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

static ROOT: OnceLock<OwnedFd> = OnceLock::new();

/// Takes the instance, if that has not happened yet. Worth doing before anybody could be in the way.
///
/// # Errors
///
/// Where there is neither a new instance nor a `/proc`.
pub fn hold() -> io::Result<()> {
    root().map(drop)
}

fn root() -> io::Result<&'static OwnedFd> {
    if let Some(root) = ROOT.get() {
        return Ok(root);
    }
    let root = detached().or_else(|error| {
        tracing::debug!(%error, "no procfs of our own; what /proc shows is used");
        openat(CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    })?;
    Ok(ROOT.get_or_init(|| root))
}

/// Only root can do this.
fn detached() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Opens a file by its path below `/proc`, such as `self/maps`.
///
/// # Errors
///
/// The kernel's; `NotFound` and `ESRCH` are what a process that has ended gives.
pub fn open(path: &str, flags: OFlags) -> io::Result<File> {
    Ok(File::from(openat(root()?, path, flags | OFlags::CLOEXEC, Mode::empty())?))
}

/// The text of a file by its path below `/proc`.
///
/// # Errors
///
/// As [`open`].
pub fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    open(path, OFlags::RDONLY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// What a path below `/proc` leads to.
///
/// # Errors
///
/// As [`open`].
pub fn metadata(path: &str) -> io::Result<Metadata> {
    open(path, OFlags::PATH)?.metadata()
}

/// The text of a link below `/proc`, such as `PID/exe`.
///
/// # Errors
///
/// As [`open`].
pub fn read_link(path: &str) -> io::Result<PathBuf> {
    let target = readlinkat(root()?, path, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
}

/// The numbers of all processes.
///
/// # Errors
///
/// Where the folder cannot be read to its end: what it says then is not all.
pub fn processes() -> io::Result<Vec<u32>> {
    let folder = open(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut numbers = Vec::new();
    for entry in Dir::read_from(folder)? {
        if let Some(number) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Number of the parent, 0 for none.
    pub parent: u32,
    /// When it started, ticks of the boot clock.
    pub start_ticks: u64,
    /// Whether nothing of it runs any more.
    pub ended: bool,
}

impl Stat {
    /// The name, in parentheses, may hold anything, parentheses too. The state is that of the first thread, which may have ended while
    /// others go on: a process has ended when it has no other thread either.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.get(text.rfind(')')? + 1..)?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        // Fields 20 and 22; the parent is field 4.
        let threads: i64 = fields.nth(15)?.parse().ok()?;
        let start_ticks = fields.nth(1)?.parse().ok()?;
        Some(Self { parent, start_ticks, ended: matches!(state, "Z" | "X") && threads <= 1 })
    }

    /// Of a process, by its number.
    ///
    /// # Errors
    ///
    /// As [`open`].
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = read(&format!("{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no /proc/PID/stat as we know it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let stat = "77 (a) R 1 (b)) S 5 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(Stat::parse(stat), Some(Stat { parent: 5, start_ticks: 4242, ended: false }));
        assert_eq!(Stat::parse("77 (x"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let stat = |state: &str, threads: u32| {
            let text = format!("77 (x) {state} 5 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 {threads} 0 4242 1 2 3");
            Stat::parse(&text).unwrap().ended
        };
        assert!(stat("Z", 1) && stat("X", 0));
        assert!(!stat("Z", 2) && !stat("S", 1));
    }

    #[test]
    fn this_process_is_there() {
        hold().unwrap();
        assert!(processes().unwrap().contains(&std::process::id()));
        let stat = Stat::of(std::process::id()).unwrap();
        assert!(!stat.ended && stat.start_ticks > 0 && stat.parent > 0);
        assert!(read("self/maps").unwrap().contains("r-xp"));
        assert_eq!(read_link("self/exe").unwrap(), std::env::current_exe().unwrap());
        assert_eq!(read("4194305/stat").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
