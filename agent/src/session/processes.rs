//! Finding and ending the processes of a session.
//!
//! Locking an account ends nothing that runs already, so the end of a session is a hunt: everything that the kernel has
//! tagged, and, in case a tag was lost with the programs, everything that runs under the account's uid or audit login uid.
//! What cannot be looked at is never taken for dead.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    kernel::ProcessId,
    procfs::{self, Stat},
};

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
    /// Whether there may be more of them, because not every process could be looked at.
    pub unsure: bool,
}

/// Kills everything that `tagged` lists and everything of `uid`, until nothing is left or [`HUNT_LIMIT`] is over.
pub fn hunt(uid: u32, mut tagged: impl FnMut() -> Vec<ProcessId>) -> Hunt {
    let end = Instant::now() + HUNT_LIMIT;
    let mut killed = HashSet::new();
    let mut quiet = 0;
    let mut pause = Duration::from_millis(1);
    loop {
        let round = kill_round(uid, &tagged(), &mut killed);
        quiet = if round.alive.is_empty() && !round.unsure { quiet + 1 } else { 0 };
        if quiet == QUIET_ROUNDS || Instant::now() >= end {
            let killed = u32::try_from(killed.len()).unwrap_or(u32::MAX);
            return Hunt { killed, survivors: round.alive, unsure: round.unsure };
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Processes of `uid` by any of their user ids or by audit login uid, the caller itself and PID 1 excluded.
pub fn of_uid(uid: u32) -> Vec<ProcessId> {
    let numbers = procfs::processes().unwrap_or_else(|error| {
        tracing::error!(%error, "the processes of this host cannot be listed");
        Vec::new()
    });
    let targets = numbers.into_iter().filter(|&pid| is_fair(pid)).filter_map(|pid| Target::open(pid).ok()?);
    targets.filter(|target| target.belongs_to(uid)).map(|target| target.id()).collect()
}

/// Whether a process may be killed at all: neither this one nor the init process.
fn is_fair(pid: u32) -> bool {
    pid != 1 && pid != std::process::id()
}

/// What one pass saw.
#[derive(Default)]
struct Round {
    alive: Vec<ProcessId>,
    unsure: bool,
}

/// One pass. The kernel's own list is not only held against what `/proc` shows: what is on it is looked for by its number.
fn kill_round(uid: u32, tagged: &[ProcessId], killed: &mut HashSet<ProcessId>) -> Round {
    let mut round = Round::default();
    let listed = procfs::processes().unwrap_or_else(|error| {
        tracing::error!(%error, "the processes of this host cannot be listed; those that the kernel has tagged are hunted");
        round.unsure = true;
        Vec::new()
    });
    let numbers: BTreeSet<u32> = listed.into_iter().chain(tagged.iter().map(|process| process.tgid)).collect();
    let tagged: HashSet<(u32, u64)> = tagged.iter().map(|p| (p.tgid, p.start_ns / NS_PER_TICK)).collect();
    for pid in numbers.into_iter().filter(|&pid| is_fair(pid)) {
        let target = match Target::open(pid) {
            Ok(Some(target)) => target,
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(pid, %error, "a process cannot be looked at; it is not taken for dead");
                round.unsure = true;
                continue;
            }
        };
        if target.stat.ended || !(tagged.contains(&(pid, target.stat.start_ticks)) || target.belongs_to(uid)) {
            continue;
        }
        round.alive.push(target.id());
        match target.kill() {
            Ok(()) => {
                killed.insert(target.id());
            }
            Err(Errno::SRCH) => {}
            Err(error) => tracing::error!(pid, %error, "cannot kill a process of the session"),
        }
    }
    round
}

/// A process held by descriptor: what is read of it after opening is of the process that the signal will reach.
struct Target {
    pid: u32,
    fd: OwnedFd,
    stat: Stat,
}

impl Target {
    /// `None` where there is none of this number any more.
    fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let opened = pidfd_open(number, PidfdFlags::empty()).map_err(io::Error::from);
        match opened.and_then(|fd| Ok((fd, Stat::of(pid)?))) {
            Ok((fd, stat)) => Ok(Some(Self { pid, fd, stat })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn id(&self) -> ProcessId {
        ProcessId { tgid: self.pid, start_ns: self.stat.start_ticks * NS_PER_TICK }
    }

    fn belongs_to(&self, uid: u32) -> bool {
        !self.stat.ended && (self.has_uid(uid).unwrap_or(false) || self.has_loginuid(uid).unwrap_or(false))
    }

    fn has_uid(&self, uid: u32) -> io::Result<bool> {
        let status = procfs::read(&format!("{}/status", self.pid))?;
        Ok(status_uids(&status).any(|found| found == uid))
    }

    fn has_loginuid(&self, uid: u32) -> io::Result<bool> {
        Ok(procfs::read(&format!("{}/loginuid", self.pid))?.trim().parse() == Ok(uid))
    }

    fn kill(&self) -> rustix::io::Result<()> {
        pidfd_send_signal(&self.fd, Signal::KILL)
    }
}

/// What a process that has ended gives: its number is free, or its files are gone while somebody reads.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
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
    fn uids_of_status() {
        let status = "Name:\tUid:\nUid:\t1\t2\t3\t4\nGid:\t9\t9\t9\t9\n";
        assert_eq!(status_uids(status).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_tagged_process_is_killed_and_its_namesake_is_not() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let id = Target::open(child.id()).unwrap().unwrap().id();
        // Nobody has this uid, so only the tag can find the child.
        let nobody = 3_999_999_999;
        let stranger = ProcessId { start_ns: id.start_ns + 10 * NS_PER_TICK, ..id };
        assert_eq!(hunt(nobody, || vec![stranger]), Hunt::default());
        assert!(child.try_wait().unwrap().is_none(), "a process with another start time was killed");

        let hunted = hunt(nobody, || vec![id]);
        assert_eq!(hunted, Hunt { killed: 1, ..Hunt::default() });
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
        assert_eq!(hunt(uid, Vec::new), Hunt { killed: 5, ..Hunt::default() });
        for child in &mut children {
            assert!(!child.wait().unwrap().success());
        }
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_killed() {
        // The thread group goes on without its leader, which /proc then shows as a zombie.
        let program = "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n\
                       print('ready', flush=True)\nctypes.CDLL(None).syscall(60, 0)";
        let started = Command::new("python3").args(["-c", program]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            println!("skipped: there is no python3");
            return;
        };
        let end = Instant::now() + Duration::from_secs(30);
        let is_zombie = || procfs::read(&format!("{}/stat", child.id())).is_ok_and(|stat| stat.contains(") Z "));
        while !is_zombie() {
            assert!(Instant::now() < end, "its first thread never ended");
            thread::sleep(Duration::from_millis(5));
        }
        let id = Target::open(child.id()).unwrap().unwrap().id();
        assert_eq!(hunt(3_999_999_999, || vec![id]), Hunt { killed: 1, ..Hunt::default() });
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn what_is_gone_is_not_in_the_way() {
        let gone = ProcessId { tgid: 4_194_305, start_ns: 1 };
        assert_eq!(hunt(3_999_999_999, || vec![gone]), Hunt::default());
    }
}
