//! The process at the other end of the Unix socket, held by descriptor.
//!
//! The kernel says who connected, by number. A number may have another owner by the time that it is looked at, or none: a process can have a
//! child connect and end, and go on speaking over the descriptor that they share.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerPidfd},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

/// The process that connected. By default one that is not known.
#[derive(Clone, Debug, Default)]
pub struct Peer(Option<Arc<OwnedFd>>);

impl Peer {
    /// Of a connection, whose process had this number.
    pub fn of(stream: &UnixStream, pid: i32) -> Self {
        // Kernels before 6.5 do not hand out the very process. There it is looked up by its number, right after it connected.
        match getsockopt(&stream.as_fd(), PeerPidfd) {
            Ok(process) => Self(Some(Arc::new(process))),
            Err(_) => Self::numbered(pid),
        }
    }

    /// Whichever process has this number now.
    pub fn numbered(pid: i32) -> Self {
        // Zero and below name no process here.
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        Self(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).map(Arc::new))
    }

    /// Whether it is known and has not ended. One that has ended and is not waited for counts as ended.
    pub fn is_alive(&self) -> bool {
        let Some(process) = &self.0 else { return false };
        // The descriptor becomes readable when the last thread has ended, pidfd_open(2).
        let mut ends = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        poll(&mut ends, PollTimeout::ZERO) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_process_at_the_other_end_is_alive() {
        let (one, _other) = UnixStream::pair().unwrap();
        let pid = one.peer_cred().unwrap().pid().unwrap();
        assert!(Peer::of(&one, pid).is_alive());
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_waited_for_or_not() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let peer = Peer::numbered(pid);
        assert!(peer.is_alive());
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while peer.is_alive() {
            assert!(std::time::Instant::now() < until, "a killed process is alive");
            std::thread::yield_now();
        }
        assert!(!Peer::numbered(pid).is_alive(), "a zombie counts as alive");
        child.wait().unwrap();
        assert!(!peer.is_alive() && !Peer::numbered(pid).is_alive());
        assert!(!Peer::default().is_alive() && !Peer::numbered(0).is_alive() && !Peer::numbered(-1).is_alive());
    }
}
