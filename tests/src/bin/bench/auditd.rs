//! The Linux audit daemon, to be measured beside the agent.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use breakglass_tests::{
    daemon::Daemon,
    machine, poll,
    undo::{Entry, Run},
};

/// What it is asked to record: every program, as it is recommended for any audit of commands.
const RULE: [&str; 6] = ["always,exit", "-F", "arch=b64", "-S", "execve,execveat", "-kbench"];

/// An auditd with that rule and a log of its own.
pub struct Auditd {
    daemon: Daemon,
}

impl Auditd {
    /// Starts it. Nothing where it is not installed, or where this machine's audit is already in use: that is somebody's.
    pub fn start(run: &Run) -> Result<Option<Self>> {
        if machine::find_program("auditd").is_none() || machine::find_program("auditctl").is_none() || in_use()? {
            return Ok(None);
        }
        let folder = run.make("auditd", 0o700)?;
        fs::write(folder.join("auditd.conf"), configuration(&folder))?;
        run.note(Entry::Audit)?;
        let mut command = Command::new(machine::program("auditd")?);
        let daemon = Daemon::start(run, "auditd", command.arg("-n").arg("-c").arg(&folder))?;
        let auditd = Self { daemon };
        let ready = poll::until_true("auditd to be ready", poll::SOON, || {
            Ok(status()?.lines().any(|line| line == format!("pid {}", auditd.daemon.pid())))
        });
        // Packages of Debian configure the same backlog.
        if let Err(error) =
            ready.and_then(|()| control(&["-b", "8192"])).and_then(|()| control(&[&["-a"][..], &RULE].concat()))
        {
            auditd.stop()?;
            return Err(error);
        }
        Ok(Some(auditd))
    }

    /// Ends it, and leaves the kernel's audit off as it was.
    pub fn stop(mut self) -> Result<()> {
        // Each is to be tried, whatever became of the one before.
        let off = control(&["-e", "0"]).and(control(&["-D"]));
        self.daemon.stop()?;
        off
    }
}

fn configuration(folder: &Path) -> String {
    let log = folder.join("audit.log");
    let mut lines = vec![format!("log_file = {}", log.display())];
    // As Debian ships it, but for what a full disk would bring.
    lines.extend(
        [
            "local_events = yes",
            "write_logs = yes",
            "log_format = ENRICHED",
            "flush = INCREMENTAL_ASYNC",
            "freq = 50",
            "max_log_file = 8",
            "num_logs = 5",
            "max_log_file_action = ROTATE",
            "priority_boost = 4",
            "name_format = NONE",
            "space_left = 75",
            "space_left_action = IGNORE",
            "admin_space_left = 50",
            "admin_space_left_action = IGNORE",
            "disk_full_action = IGNORE",
            "disk_error_action = IGNORE",
        ]
        .map(str::to_owned),
    );
    lines.join("\n") + "\n"
}

/// Whether a daemon listens, auditing is on, or rules are loaded; so too where the kernel does not answer.
fn in_use() -> Result<bool> {
    let Ok(status) = status() else { return Ok(true) };
    let idle = |line: &str| status.lines().any(|given| given == line);
    let rules = machine::run(Command::new(machine::program("auditctl")?).arg("-l"))?;
    Ok(!idle("enabled 0") || !idle("pid 0") || rules.trim() != "No rules")
}

fn status() -> Result<String> {
    machine::run(Command::new(machine::program("auditctl")?).arg("-s"))
}

fn control(arguments: &[&str]) -> Result<()> {
    machine::run(Command::new(machine::program("auditctl")?).args(arguments))
        .map(drop)
        .with_context(|| format!("auditctl {}", arguments.join(" ")))
}
