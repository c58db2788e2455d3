//! What is asked of systemd, where it is the first process: always besides what the agent does itself, never instead of it.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// There while systemd is the first process: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// How long one command may take; a manager that hangs must not hold up a close.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Pause between looks at a command that runs. Nobody waits for it.
const PAUSE: Duration = Duration::from_millis(10);

/// Whether systemd runs this machine.
pub fn is_running() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Whether the machine is going down: the manager stops everything then, and asks nobody.
pub fn is_stopping() -> bool {
    let asked = Command::new("systemctl")
        .arg("is-system-running")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    is_running() && asked.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
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
    let started = Instant::now();
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return tracing::warn!(program, %error, "cannot be run"),
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return tracing::debug!(program, ?arguments, %status, "did not do what it was asked"),
            Ok(None) if started.elapsed() < COMMAND_LIMIT => thread::sleep(PAUSE),
            Ok(None) => {
                tracing::warn!(program, ?arguments, "hangs and is ended");
                // Gone already, or it goes when the kernel lets it.
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            Err(error) => return tracing::warn!(program, %error, "cannot be waited for"),
        }
    }
}
