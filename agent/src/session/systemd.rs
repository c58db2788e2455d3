//! What is asked of systemd, where it is the first process: always besides what the agent does itself, never instead of it.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::program;

/// There while systemd is the first process: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// How long one command may take; a manager that hangs must not hold up a close.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Whether systemd runs this machine.
pub fn is_running() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Whether the machine is going down: the manager stops everything then, and asks nobody.
pub fn is_stopping() -> bool {
    is_running() && says_stopping(&mut command("systemctl", &["is-system-running"]), COMMAND_LIMIT)
}

/// A manager that does not answer is not taken for one that stops.
fn says_stopping(asked: &mut Command, limit: Duration) -> bool {
    program::output(asked, limit).is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Has the account's own service manager stopped and kept from staying without a login. An expired account passes that manager's
/// account check, so it would start again with whatever the session left for it. Not waited for: the hunt kills what runs.
pub fn end_user(name: &str, uid: u32) {
    if !is_running() {
        return;
    }
    let name = name.to_owned();
    thread::spawn(move || {
        run("loginctl", &["disable-linger", &name]);
        run("systemctl", &["stop", &format!("user@{uid}.service"), &format!("user-{uid}.slice")]);
    });
}

/// Runs a command of systemd's to its end or its limit; what goes wrong is logged.
pub(super) fn run(program: &str, arguments: &[&str]) {
    match program::run(&mut command(program, arguments), COMMAND_LIMIT) {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::debug!(program, ?arguments, %status, "did not do what it was asked"),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            tracing::warn!(program, ?arguments, "hangs and is ended");
        }
        Err(error) => tracing::warn!(program, %error, "cannot be run"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_manager_that_hangs_is_not_waited_for() {
        let started = Instant::now();
        assert!(!says_stopping(&mut command("sleep", &["1000"]), Duration::from_millis(50)));
        assert!(started.elapsed() < COMMAND_LIMIT);
        let says =
            |word: &str| says_stopping(&mut command("sh", &["-c", &format!("echo {word}; exit 1")]), COMMAND_LIMIT);
        assert!(says("stopping") && !says("running"));
    }
}
