//! Finding and ending the processes of a session.
//!
//! Locking an account ends nothing that runs already, so the end of a session is a hunt: everything that the kernel has
//! tagged, and, in case a tag was lost with the programs, everything that runs under the account's uid or audit login uid.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::kernel::ProcessId;

/// Longest that the hunt goes on before it reports survivors. A killed process that is stuck in the kernel dies when the
/// kernel lets it go; waiting longer would only delay the report.
pub const HUNT_LIMIT: Duration = Duration::from_secs(5);

/// Rounds in a row that must find nothing: one could fall between a fork and the child's appearance in `/proc`.
const QUIET_ROUNDS: u32 = 2;

/// Ticks a second in `/proc/PID/stat`, `USER_HZ`, fixed at 100 for every architecture that we run on.
pub(super) const NS_PER_TICK: u64 = 1_000_000_000 / 100;

/// What a hunt did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hunt {
    /// Processes that were alive and got SIGKILL.
    pub killed: u32,
    /// Processes that were still there when the time was up.
    pub survivors: Vec<ProcessId>,
}

/// Kills everything that `tagged` lists and everything of `uid`, until nothing is left or [`HUNT_LIMIT`] is over.
pub fn hunt(uid: u32, mut tagged: impl FnMut() -> Vec<ProcessId>) -> Hunt {
    let end = Instant::now() + HUNT_LIMIT;
    let mut killed = HashSet::new();
    let mut quiet = 0;
    let mut pause = Duration::from_millis(1);
    loop {
        let alive = kill_round(uid, &tagged(), &mut killed);
        quiet = if alive.is_empty() { quiet + 1 } else { 0 };
        if quiet == QUIET_ROUNDS {
            return Hunt { killed: count(&killed), survivors: Vec::new() };
        }
        if Instant::now() >= end {
            return Hunt { killed: count(&killed), survivors: alive };
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Processes of `uid` by any of their user ids or by audit login uid, the caller itself and PID 1 excluded.
pub fn of_uid(uid: u32) -> Vec<ProcessId> {
    numbers().filter_map(|pid| Target::open(pid).filter(|target| target.belongs_to(uid))).map(|t| t.id()).collect()
}

fn count(killed: &HashSet<ProcessId>) -> u32 {
    u32::try_from(killed.len()).unwrap_or(u32::MAX)
}

/// One pass; returns those that were alive.
fn kill_round(uid: u32, tagged: &[ProcessId], killed: &mut HashSet<ProcessId>) -> Vec<ProcessId> {
    let tagged: HashSet<(u32, u64)> = tagged.iter().map(|p| (p.tgid, p.start_ns / NS_PER_TICK)).collect();
    let mut alive = Vec::new();
    for target in numbers().filter_map(Target::open) {
        if target.dead || !(tagged.contains(&(target.pid, target.start_ticks)) || target.belongs_to(uid)) {
            continue;
        }
        alive.push(target.id());
        match target.kill() {
            Ok(()) => {
                killed.insert(target.id());
            }
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = target.pid, %error, "cannot kill a process of the session"),
        }
    }
    alive
}

/// Every process number in `/proc` but our own and PID 1's.
fn numbers() -> impl Iterator<Item = u32> {
    let own = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(move |&pid| pid != own && pid != 1)
}

/// A process held by descriptor: what is read of it after opening is of the process that the signal will reach.
struct Target {
    pid: u32,
    fd: OwnedFd,
    start_ticks: u64,
    dead: bool,
}

impl Target {
    fn open(pid: u32) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_ticks) = parse_stat(&stat)?;
        Some(Self { pid, fd, start_ticks, dead: matches!(state, 'Z' | 'X') })
    }

    fn id(&self) -> ProcessId {
        ProcessId { tgid: self.pid, start_ns: self.start_ticks * NS_PER_TICK }
    }

    fn belongs_to(&self, uid: u32) -> bool {
        !self.dead && (self.has_uid(uid).unwrap_or(false) || self.has_loginuid(uid).unwrap_or(false))
    }

    fn has_uid(&self, uid: u32) -> io::Result<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        Ok(status_uids(&status).any(|found| found == uid))
    }

    fn has_loginuid(&self, uid: u32) -> io::Result<bool> {
        Ok(fs::read_to_string(format!("/proc/{}/loginuid", self.pid))?.trim().parse() == Ok(uid))
    }

    fn kill(&self) -> rustix::io::Result<()> {
        pidfd_send_signal(&self.fd, Signal::KILL)
    }
}

/// State (field 3) and start time (field 22) of `/proc/PID/stat`; the name in field 2 may hold anything, parentheses too.
pub(super) fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// The real, effective, saved and file-system uid of `/proc/PID/status`.
fn status_uids(status: &str) -> impl Iterator<Item = u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .into_iter()
        .flat_map(str::split_ascii_whitespace)
        .filter_map(|field| field.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let stat = "77 (a) R 1 (b)) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("77 (x"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn uids_of_status() {
        let status = "Name:\tUid:\nUid:\t1\t2\t3\t4\nGid:\t9\t9\t9\t9\n";
        assert_eq!(status_uids(status).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_tagged_process_is_killed_and_its_namesake_is_not() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let id = Target::open(child.id()).unwrap().id();
        // Nobody has this uid, so only the tag can find the child.
        let nobody = 3_999_999_999;
        let stranger = ProcessId { start_ns: id.start_ns + 10 * NS_PER_TICK, ..id };
        assert_eq!(hunt(nobody, || vec![stranger]), Hunt::default());
        assert!(child.try_wait().unwrap().is_none(), "a process with another start time was killed");

        let hunted = hunt(nobody, || vec![id]);
        assert_eq!(hunted, Hunt { killed: 1, survivors: vec![] });
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn every_process_of_a_uid_is_found() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can start processes of another uid");
            return;
        }
        let uid = 2_100_000_000 + std::process::id();
        let mut children: Vec<_> =
            (0..5).map(|_| Command::new("sleep").arg("1000").uid(uid).stdin(Stdio::null()).spawn().unwrap()).collect();
        assert_eq!(of_uid(uid).len(), 5);
        assert_eq!(hunt(uid, Vec::new), Hunt { killed: 5, survivors: vec![] });
        for child in &mut children {
            assert!(!child.wait().unwrap().success());
        }
    }
}
