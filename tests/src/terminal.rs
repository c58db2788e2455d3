//! Driving a program at a terminal: type, wait for text, keep every byte that came back.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::pty::{Winsize, openpty};

use crate::{daemon::noted, machine, poll, undo::Run};

/// How much of what was seen goes into an error message, bytes.
const TAIL: usize = 1500;

/// Window of the pseudo terminals made here.
const WINDOW: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A program that is typed at and read from.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    input: Option<File>,
    seen: Arc<Seen>,
    /// Where the next [`Terminal::expect`] begins to look.
    at: usize,
}

#[derive(Debug, Default)]
struct Seen {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Terminal {
    /// Starts `command` at a new pseudo terminal, as its controlling terminal.
    pub fn start(run: &Run, command: &Command) -> Result<Self> {
        let pair = openpty(Some(&WINDOW), None).context("no pseudo terminal")?;
        // setsid(1) makes the slave, its standard input, the controlling terminal.
        let mut wrapped = Command::new(machine::program("setsid")?);
        wrapped.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        wrapped.stdin(pair.slave.try_clone()?).stdout(pair.slave.try_clone()?).stderr(pair.slave);
        let child = wrapped.spawn().with_context(|| format!("cannot start {command:?}"))?;
        // The command holds the slave open; as long as it does, the master never reads its end.
        drop(wrapped);
        let input = File::from(pair.master.try_clone()?);
        Self::attach(run, child, input, pair.master)
    }

    /// Starts `command` with pipes, for programs that make their terminal elsewhere, such as `ssh -tt`: what is read is exactly
    /// what the far terminal gave. Standard error stays apart and is dropped.
    pub fn start_piped(run: &Run, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = File::from(OwnedFd::from(child.stdin.take().context("no pipe to type into")?));
        let output = OwnedFd::from(child.stdout.take().context("no pipe to read from")?);
        Self::attach(run, child, input, output)
    }

    fn attach(run: &Run, child: Child, input: File, output: OwnedFd) -> Result<Self> {
        let child = noted(run, child)?;
        let seen = Arc::new(Seen::default());
        let reading = Arc::clone(&seen);
        thread::Builder::new().name("terminal".into()).spawn(move || reading.read(File::from(output)))?;
        Ok(Self { child, input: Some(input), seen, at: 0 })
    }

    /// Types.
    pub fn send(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        let input = self.input.as_mut().context("the input is closed")?;
        input.write_all(text.as_ref()).context("cannot type")
    }

    /// Waits until `text` appears after what was matched before.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        self.expect_within(text, poll::SOON)
    }

    /// As [`Terminal::expect`], with a deadline of its own.
    pub fn expect_within(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.seen.lock();
        // What was looked through already, but for the beginning of a match at its end.
        let mut from = self.at;
        loop {
            if let Some(found) = find(&state.bytes[from..], text.as_bytes()) {
                self.at = from + found + text.len();
                return Ok(());
            }
            from = from.max((state.bytes.len() + 1).saturating_sub(text.len()));
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended { "it ended" } else { "it did not come in time" };
                bail!("expected {text:?}: {why}; seen last: {}", tail(&state.bytes));
            }
            state = self.seen.wait(state, left);
        }
    }

    /// Types a line and waits for `text`.
    pub fn ask(&mut self, line: &str, text: &str) -> Result<()> {
        self.send(format!("{line}\n"))?;
        self.expect(text)
    }

    /// Closes the input, where it is a pipe.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Everything that came so far.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().bytes.clone()
    }

    /// How much came so far, bytes.
    pub fn seen_len(&self) -> usize {
        self.seen.lock().bytes.len()
    }

    /// Drops everything that came so far.
    pub fn forget(&mut self) {
        self.seen.lock().bytes.clear();
        self.at = 0;
    }

    /// Waits for the program and its output to end.
    pub fn finish(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = poll::until("the terminal's program to end", limit, || Ok(self.child.try_wait()?))
            .with_context(|| format!("seen last: {}", tail(&self.seen.lock().bytes)))?;
        let deadline = Instant::now() + poll::SOON;
        let mut state = self.seen.lock();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the program ended and its terminal stays open");
            }
            state = self.seen.wait(state, left);
        }
        drop(state);
        Ok(status)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already, as it should be: then these fail, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn read(&self, mut output: File) {
        let mut piece = vec![0; 64 * 1024];
        loop {
            let length = match output.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A master reads EIO when the last slave is closed.
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            self.lock().bytes.extend_from_slice(&piece[..length]);
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// Where `needle` first lies in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, needle)
}

fn tail(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds() {
        assert_eq!(find(b"abcabd", b"abd"), Some(3));
        assert_eq!(find(b"abc", b"abd"), None);
        assert_eq!(find(b"", b""), Some(0));
    }
}
