//! The built command on a pseudo terminal.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

/// How long anything on a terminal may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// The command on a pseudo terminal of its own.
pub struct OnTerminal {
    pub child: Child,
    pub master: File,
    // Kept open: the terminal's settings are looked at after the command has ended.
    slave: OwnedFd,
    pub shown: Vec<u8>,
}

impl OnTerminal {
    /// Starts it with the terminal as its three standard streams.
    pub fn start(command: &mut Command, columns: u16) -> Self {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let stdio = || pty.slave.try_clone().unwrap();
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        Self { child, master: pty.master.into(), slave: pty.slave, shown: Vec::new() }
    }

    /// Reads until the text has been shown.
    pub fn until(&mut self, text: &str) {
        let start = Instant::now();
        while !String::from_utf8_lossy(&self.shown).contains(text) {
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {:?}", String::from_utf8_lossy(&self.shown));
            let mut bytes = [0; 4096];
            let n = self.master.read(&mut bytes).unwrap();
            self.shown.extend_from_slice(&bytes[..n]);
        }
    }

    /// Reads until it has ended and everything that it showed is there.
    pub fn until_the_end(&mut self) {
        let start = Instant::now();
        loop {
            // Asked first: what it showed was shown before it ended.
            let ended = self.child.try_wait().unwrap().is_some();
            while self.is_readable() {
                let mut bytes = [0; 4096];
                let n = self.master.read(&mut bytes).unwrap();
                self.shown.extend_from_slice(&bytes[..n]);
            }
            if ended {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "still running");
        }
    }

    /// Whether there is something to read, or comes within a few milliseconds.
    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, 5u8).unwrap() > 0
    }

    /// Whether it has the settings of a terminal that nobody changed.
    pub fn is_cooked(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "still running");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
