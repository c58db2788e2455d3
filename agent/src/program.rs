//! Other programs, run for a limited time. They read files of the host's, and what a session left there may keep them for ever.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{OFlags, fcntl_setfl};

/// Pause between looks at a program that runs. Nobody waits for it.
const PAUSE: Duration = Duration::from_millis(10);

/// Most that is taken of what a program writes, bytes.
const OUTPUT_MAX: usize = 1 << 20;

/// Room for one read, bytes: what a pipe holds.
const BUFFER: usize = 64 * 1024;

/// Runs it to its end. One that takes longer than `limit` is killed, and is [`io::ErrorKind::TimedOut`].
pub fn run(command: &mut Command, limit: Duration) -> io::Result<ExitStatus> {
    wait(command.spawn()?, limit, || Ok(()))
}

/// The same, with what it writes to its standard output and error.
pub fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (mut stdout, mut stderr) =
        (Pipe::new(child.stdout.take().map(Into::into))?, Pipe::new(child.stderr.take().map(Into::into))?);
    let status = wait(child, limit, || stdout.drain().and_then(|()| stderr.drain()))?;
    // What was written between the last look and the end.
    stdout.drain()?;
    stderr.drain()?;
    Ok(Output { status, stdout: stdout.taken, stderr: stderr.taken })
}

fn wait(mut child: Child, limit: Duration, mut look: impl FnMut() -> io::Result<()>) -> io::Result<ExitStatus> {
    let started = Instant::now();
    loop {
        let ended = match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if started.elapsed() < limit => look(),
            Ok(None) => {
                let what = format!("it did not end within {:.1} s, and was killed", limit.as_secs_f64());
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            end(child);
            return Err(error);
        }
        thread::sleep(PAUSE);
    }
}

/// Gone already, or it goes when the kernel lets it, which may be never; so others do the waiting.
fn end(mut child: Child) {
    let _ = child.kill();
    // Without a thread it stays a zombie, which harms nobody.
    let _ = thread::Builder::new().spawn(move || child.wait());
}

/// One end of a pipe that is read without waiting: a program's children may hold the other open when it has ended.
struct Pipe {
    file: Option<File>,
    taken: Vec<u8>,
}

impl Pipe {
    fn new(end: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(end) = &end {
            fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(Self { file: end.map(File::from), taken: Vec::new() })
    }

    fn drain(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut buffer = vec![0; BUFFER];
        loop {
            let got = match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.taken.extend_from_slice(buffer.get(..got).unwrap_or_default());
            if self.taken.len() > OUTPUT_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it writes without end, and was killed"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Above what starting a program takes on a slow machine, and far below what those in the tests would take.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let started = Instant::now();
        let limit = Duration::from_millis(50);
        assert_eq!(run(&mut sh("exec sleep 1000"), limit).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(output(&mut sh("exec sleep 1000"), limit).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(output(&mut sh("exec cat /dev/zero"), PATIENCE).is_err());
        assert!(started.elapsed() < PATIENCE);
        assert_eq!(run(&mut sh("exit 7"), PATIENCE).unwrap().code(), Some(7));
    }

    #[test]
    fn what_it_wrote_is_had_although_a_child_of_its_holds_the_pipe() {
        let started = Instant::now();
        let got = output(&mut sh("sleep 60 & echo out; echo err >&2; exit 3"), PATIENCE).unwrap();
        assert_eq!((got.stdout.as_slice(), got.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(got.status.code(), Some(3));
        // More than a pipe holds.
        assert_eq!(output(&mut sh("head -c 300000 /dev/zero"), PATIENCE).unwrap().stdout.len(), 300_000);
        assert!(started.elapsed() < PATIENCE);
    }
}
