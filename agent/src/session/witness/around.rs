//! What the system says about processes and units at this moment.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Component, Path},
    time::SystemTime,
};

use breakglass_api::v1;

use crate::{
    procfs::{self, Stat},
    session::{clock, processes::NS_PER_TICK},
};

/// Where the service manager keeps the units that it was asked to make.
const TRANSIENT: &str = "/run/systemd/transient";

/// The system around a program, asked right after it started: it may be gone.
pub trait Around: Send {
    /// Parent and program of a process, if it is still the one that is meant. The parent's start time is rounded to a tick.
    fn process(&self, process: v1::Process) -> Option<(Option<v1::Process>, Vec<u8>)>;
    /// The unit that a process belongs to.
    fn unit(&self, pid: u32) -> Option<String>;
    /// On the boot clock, when the service manager made a transient unit of this name; `None` where it is none.
    fn transient_since(&self, unit: &str) -> Option<u64>;
    /// Path of a process's standard input; of a deleted file the path that it had.
    fn stdin(&self, pid: u32) -> Option<Vec<u8>>;
}

/// The running one.
pub struct System;

impl Around for System {
    fn process(&self, process: v1::Process) -> Option<(Option<v1::Process>, Vec<u8>)> {
        let stat = Stat::of(process.pid).ok()?;
        if stat.start_ticks != process.start_ns / NS_PER_TICK {
            return None;
        }
        let exe = procfs::read_link(&format!("{}/exe", process.pid)).unwrap_or_default();
        Some((parent_of(stat), exe.into_os_string().into_vec()))
    }

    fn unit(&self, pid: u32) -> Option<String> {
        unit_of(&procfs::read(&format!("{pid}/cgroup")).ok()?)
    }

    fn transient_since(&self, unit: &str) -> Option<u64> {
        // A name from a cgroup could climb out of the folder.
        let mut parts = Path::new(unit).components();
        let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else { return None };
        let made = fs::metadata(Path::new(TRANSIENT).join(name)).ok()?.modified().ok()?;
        let age = SystemTime::now().duration_since(made).unwrap_or_default();
        clock::boot_ns().checked_sub(u64::try_from(age.as_nanos()).ok()?)
    }

    fn stdin(&self, pid: u32) -> Option<Vec<u8>> {
        let path = procfs::read_link(&format!("{pid}/fd/0")).ok()?.into_os_string().into_vec();
        Some(path.strip_suffix(b" (deleted)").map_or(path.clone(), <[u8]>::to_vec))
    }
}

/// The parent of a process, with the start time that it has now.
fn parent_of(stat: Stat) -> Option<v1::Process> {
    if stat.parent == 0 {
        return None;
    }
    let parent = Stat::of(stat.parent).ok()?;
    Some(v1::Process { pid: stat.parent, start_ns: parent.start_ticks * NS_PER_TICK })
}

/// The innermost unit in `/proc/PID/cgroup`: of the hierarchy named systemd, or of the unified one.
fn unit_of(cgroups: &str) -> Option<String> {
    let groups = cgroups.lines().filter_map(|line| {
        let (_, named) = line.split_once(':')?;
        named.strip_prefix("name=systemd:").or_else(|| named.strip_prefix(':'))
    });
    // A service may have made groups of its own below its unit's.
    let is_unit = |part: &&OsStr| Path::new(part).extension().is_some_and(|end| end == "service" || end == "scope");
    let mut units = groups.filter_map(|group| Path::new(group).iter().rfind(is_unit)?.to_str());
    units.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_last_one_in_the_group() {
        assert_eq!(unit_of("0::/system.slice/cron.service\n").as_deref(), Some("cron.service"));
        assert_eq!(unit_of("0::/system.slice/x.service/inner\n").as_deref(), Some("x.service"));
        assert_eq!(
            unit_of("2:cpu:/\n1:name=systemd:/user.slice/user-0.slice/user@0.service/app.slice/run-u3.service\n0::/\n")
                .as_deref(),
            Some("run-u3.service")
        );
        assert_eq!(unit_of("0::/\n"), None);
        assert_eq!(unit_of(""), None);
    }

    #[test]
    fn this_process_is_found_and_a_namesake_is_not() {
        let pid = std::process::id();
        let ticks = Stat::of(pid).unwrap().start_ticks;
        let own = v1::Process { pid, start_ns: ticks * NS_PER_TICK + 1 };
        let (parent, exe) = System.process(own).unwrap();
        assert_eq!(parent.unwrap().pid, std::os::unix::process::parent_id());
        assert_eq!(exe, std::env::current_exe().unwrap().into_os_string().into_vec());
        assert!(System.process(v1::Process { start_ns: own.start_ns + 2 * NS_PER_TICK, ..own }).is_none());
    }

    #[test]
    fn a_unit_that_is_a_path_is_none() {
        for name in ["..", "../../../etc/passwd", "/etc/passwd", "", "no-such-unit.service"] {
            assert_eq!(System.transient_since(name), None, "{name}");
        }
    }
}
