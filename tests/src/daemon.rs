//! A long-running program under test: its process, its log, and its end.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    machine, poll,
    undo::{Entry, Run},
};

/// Writes a new process down in the run's undo list; ends it where that fails.
pub fn noted(run: &Run, mut child: Child) -> Result<Child> {
    let pid = i32::try_from(child.id())?;
    // A process that has ended already needs no undoing.
    let Some(start) = machine::start_of(pid) else { return Ok(child) };
    if let Err(error) = run.note(Entry::Process { pid, start }) {
        child.kill()?;
        child.wait()?;
        return Err(error);
    }
    Ok(child)
}

/// How much of a log goes into an error message, in lines.
const TAIL: usize = 30;

/// A started daemon. Dropping it leaves it to the run's undo list.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Where this start's part of the log begins, bytes.
    log_start: usize,
}

impl Daemon {
    /// Starts `command` with its output in the run's `logs` folder, in a process group of its own, so that Ctrl-C at a
    /// terminal reaches only the harness, which then ends it in order.
    pub fn start(run: &Run, name: &'static str, command: &mut Command) -> Result<Self> {
        let path = run.make("logs", 0o700)?.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path)?;
        let log_start = usize::try_from(log.metadata()?.len())?;
        let child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let child = noted(run, child)?;
        Ok(Self { name, child, log: path, log_start })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written since it was started.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// The log file, which goes on over restarts.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it is called in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The end of its log, for a message.
    pub fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        format!("log of {}:\n{}", self.name, lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }

    /// Waits until `look` finds something in what it has written; fails at once if it ends before.
    pub fn wait_for<T>(&mut self, what: &str, limit: Duration, look: impl Fn(&str) -> Option<T>) -> Result<T> {
        let found = poll::until(&format!("{} to say {what}", self.name), limit, || {
            if let Some(found) = look(&self.output()) {
                return Ok(Some(Ok(found)));
            }
            Ok(self.child.try_wait()?.map(|status| Err(anyhow::anyhow!("{} ended ({status})", self.name))))
        });
        found.and_then(|found| found).with_context(|| self.tail())
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended ({status}); {}", self.name, self.tail()),
            None => Ok(()),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        poll::until(&format!("{} to end", self.name), limit, || Ok(self.child.try_wait()?)).with_context(|| self.tail())
    }

    /// Asks it to end and waits until it has; fails if it panicked or died by a signal.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(poll::SOON)?;
        if let Some(signal) = status.signal() {
            bail!("{} died by signal {signal} when asked to end; {}", self.name, self.tail());
        }
        Ok(status)
    }

    /// Kills it without warning.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(poll::SOON).map(drop)
    }
}
