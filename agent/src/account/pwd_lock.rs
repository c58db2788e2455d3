//! The lock that `passwd`, `useradd`, `vipw` and systemd-sysusers take before they change the account files: `lckpwdf(3)`.
//!
//! glibc's is a POSIX record lock on `/etc/.pwd.lock`. Ours is an open-file-description lock on the same file: the two kinds
//! exclude each other, and ours also excludes other threads of the agent and is not dropped when some other code closes
//! the file.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::regular;

/// As long as `lckpwdf(3)` waits.
pub const WAIT: Duration = Duration::from_secs(15);

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Held until dropped.
pub struct PwdLock {
    _file: File,
}

/// Why the lock was not had.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else held it all the time.
    Busy,
    /// The file cannot be opened or locked.
    Io(io::Error),
}

/// Where the lock for a shadow file is.
pub fn path_beside(shadow: &Path) -> PathBuf {
    shadow.with_file_name(".pwd.lock")
}

impl PwdLock {
    /// Takes the lock, waiting up to `wait`.
    pub fn take(path: &Path, wait: Duration) -> Result<Self, LockError> {
        let file = regular::open_lock(path).map_err(LockError::Io)?;
        let deadline = Instant::now() + wait;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                Ok(_) => return Ok(Self { _file: file }),
                Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(LockError::Busy),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(LockError::Io(errno.into())),
            }
        }
    }
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_excludes_threads_and_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_beside(&dir.path().join("shadow"));
        let held = PwdLock::take(&path, Duration::ZERO).unwrap();
        assert!(matches!(PwdLock::take(&path, Duration::from_millis(20)), Err(LockError::Busy)));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| PwdLock::take(&path, Duration::from_secs(10)).is_ok());
            drop(held);
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn a_trap_in_its_place_is_no_lock_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_beside(&dir.path().join("shadow"));
        regular::tests::trap(&path);
        let taken = regular::tests::untrapped(move || PwdLock::take(&path, Duration::ZERO));
        assert!(matches!(taken, Err(LockError::Io(_))));
    }

    #[test]
    fn it_excludes_what_glibc_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".pwd.lock");
        // Python's lockf is the same fcntl lock as lckpwdf's.
        let script = "import fcntl,sys\nf=open(sys.argv[1],'w')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\nsys.stdin.read()";
        let child = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: there is no python3 to hold the lock");
            return;
        };
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert!(matches!(PwdLock::take(&path, Duration::from_millis(20)), Err(LockError::Busy)));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(PwdLock::take(&path, Duration::from_secs(10)).is_ok());
    }
}
