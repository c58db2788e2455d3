//! The end of a session: whatever it started, and however that hid, is dead.

use std::{fs, io::Write as _, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use breakglass_tests::{machine, poll};

use super::{
    cases::Cases,
    host::{ACCOUNT, Host, PAM, SOON, running, said},
};
use crate::guest::{Guest, shell};

/// A kind of process, and how the session's shell starts it; `SLEEP` is a program that only this kind runs.
struct Kind {
    name: &'static str,
    start: &'static str,
}

const KINDS: &[Kind] = &[
    Kind { name: "in the background", start: "SLEEP &" },
    Kind { name: "with nohup and setsid", start: "nohup setsid SLEEP >/dev/null 2>&1 &" },
    Kind { name: "deaf to signals", start: "(trap '' TERM HUP INT QUIT; exec SLEEP) &" },
    Kind { name: "stopped", start: "SLEEP & until grep -q sleep /proc/$!/comm; do :; done; kill -STOP $!" },
    Kind { name: "forked twice", start: "( (setsid SLEEP &) & )" },
    Kind { name: "root's, by sudo", start: "sudo -b setsid SLEEP" },
    Kind { name: "another user's, by sudo", start: "sudo -b -u nobody setsid SLEEP" },
    Kind { name: "another user's, by su", start: "sudo su nobody -s /bin/sh -c 'setsid SLEEP &'" },
    Kind { name: "in tmux", start: "tmux new-session -d 'SLEEP'" },
    Kind { name: "in namespaces of its own", start: "sudo -b unshare --fork --pid --mount --net SLEEP" },
    Kind { name: "in the root cgroup", start: "sudo -b sh -c 'echo $$ > /sys/fs/cgroup/cgroup.procs; exec SLEEP'" },
    Kind {
        name: "in the root cgroup, without a login uid",
        start: "sudo -b sh -c 'echo $$ > /sys/fs/cgroup/cgroup.procs; echo 4294967295 > /proc/self/loginuid; exec SLEEP'",
    },
    Kind {
        name: "another user's, without a login uid",
        start: "sudo -b sh -c 'echo 4294967295 > /proc/self/loginuid; exec setpriv --reuid nobody --clear-groups SLEEP'",
    },
    Kind {
        name: "in a frozen cgroup",
        start: "sudo -b sh -c 'mkdir /sys/fs/cgroup/frozen; echo $$ > /sys/fs/cgroup/frozen/cgroup.procs; exec SLEEP'",
    },
    Kind {
        name: "by the account's service manager",
        start: "XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --quiet SLEEP",
    },
    Kind { name: "by systemd-run as the account", start: "sudo systemd-run --quiet --uid=breakglass SLEEP" },
    Kind { name: "by systemd-run as root", start: "sudo systemd-run --quiet SLEEP" },
    Kind { name: "in a scope of root's", start: "sudo systemd-run --quiet --scope SLEEP >/dev/null 2>&1 &" },
    Kind { name: "by at", start: "echo SLEEP | at now 2>/dev/null" },
    Kind { name: "by root's at", start: "echo SLEEP | sudo at now 2>/dev/null" },
];

#[test]
fn everything_of_a_session_is_dead_after_it() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let host = Host::up()?;
    let mut cases = Cases::default();
    let opened = host.open("outlive it", Duration::from_secs(600))?;
    start_all(&host)?;
    shell(&format!("loginctl enable-linger {ACCOUNT}"))?;
    let asked = machine::boot_ns()?;
    host.close()?;
    let all_dead = poll::until_true("everything to be dead", Duration::from_secs(20), || {
        Ok((0..KINDS.len()).all(|number| running(&word(number)) == 0))
    });
    let took = Duration::from_nanos(machine::boot_ns()? - asked);
    println!("looked for {took:?} after closing");
    for (number, kind) in KINDS.iter().enumerate() {
        cases.case(&format!("dead: {}", kind.name), || {
            ensure!(running(&word(number)) == 0, "it lives");
            Ok(())
        });
    }
    cases.case("the hunt took less than a second, as far as emulation allows", || {
        all_dead?;
        let closed = host.closed(&opened.session)?;
        println!("the agent says {} ms, {} killed", closed.took_us / 1000, closed.killed);
        ensure!(closed.survivors.is_empty(), "survivors: {:?}", closed.survivors);
        ensure!(closed.took_us < 10_000_000, "{} ms", closed.took_us / 1000);
        Ok(())
    });
    cases.case("the account's service manager is gone and does not linger", || {
        poll::until_true("the manager to be gone", SOON, || {
            let state = shell(&format!("systemctl is-active user@{}.service || true", host.uid))?;
            Ok(matches!(state.trim(), "inactive" | "failed")
                && !fs::exists(format!("/var/lib/systemd/linger/{ACCOUNT}"))?)
        })
    });
    // What outlived the session must not disturb the tests that follow.
    shell("pkill -x sleep || true")?;
    cases.verdict()
}

/// How long a kind's `sleep` is: tells it from every other process.
fn word(number: usize) -> String {
    format!("86400.{:03}", number + 100)
}

/// Starts every kind from one shell without a terminal, and waits until all run.
fn start_all(host: &Host) -> Result<()> {
    let line = |(number, kind): (usize, &Kind)| {
        format!("{}\n", kind.start.replace("SLEEP", &format!("sleep {}", word(number))))
    };
    let script: String = KINDS.iter().enumerate().map(line).collect();
    let mut ssh = host.ssh(PAM, &host.key());
    ssh.args(["127.0.0.1", "bash -s"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ssh.spawn()?;
    // The shell reads all of it and stays: its own background jobs hold its output open.
    child.stdin.take().context("no pipe")?.write_all(script.as_bytes())?;
    let mut missing = Vec::new();
    let all = poll::until_true("every kind to run", SOON, || {
        missing = (0..KINDS.len()).filter(|number| running(&word(*number)) == 0).collect();
        Ok(missing.is_empty())
    });
    if let Err(error) = all {
        child.kill()?;
        let output = child.wait_with_output()?;
        let names: Vec<&str> = missing.iter().filter_map(|number| Some(KINDS.get(*number)?.name)).collect();
        return Err(error.context(format!("did not start: {names:?}; the shell said {}", said(&output))));
    }
    // It ends with the session; its end is looked at by nobody.
    std::thread::spawn(move || child.wait());
    shell("echo 1 > /sys/fs/cgroup/frozen/cgroup.freeze").map(drop)
}
