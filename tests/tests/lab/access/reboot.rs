//! The machine starts anew while a session is open: by losing its power, and in order. After it the account is locked before sshd takes
//! anybody, nothing is left of the grant, the record says how the session ended, and the glass can be broken again.
//!
//! Each test is run twice: the first run opens and starts the machine anew, the second, on the next boot, looks.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use breakglass_api::v1::CloseCause;
use breakglass_tests::poll;

use super::{
    cases::Cases,
    host::{ACCOUNT, Host, NO_PAM, PAM, SOON},
};
use crate::guest::{Guest, shell};

/// What tells the lab that the next boot is asked for: `xtask/src/lab/runner.rs`.
const RESUME: &str = "/lab/resume";

/// What has to outlast the boot. The operator's own files are in memory otherwise.
const KEPT: &str = "/var/lib/lab-reboot";

/// A unit that looks at the locks before sshd starts, and where it writes.
const PROBE: &str = "/etc/systemd/system/lab-probe.service";
const SEEN: &str = "/var/lib/lab-probe-seen";

#[test]
fn after_a_power_cut_it_is_locked_closed_and_opens_again() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    through("power", "echo b > /proc/sysrq-trigger", |cause, by| {
        ensure!(cause == CloseCause::Reboot, "closed because of {cause:?} ({by})");
        Ok(())
    })
}

#[test]
fn after_an_orderly_reboot_it_is_locked_closed_and_opens_again() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    through("orderly", "systemctl reboot", |cause, by| {
        ensure!(cause == CloseCause::Reboot, "closed because of {cause:?} ({by})");
        // By the agent itself while the machine went down.
        ensure!(by.contains("the machine goes down"), "closed by {by}");
        Ok(())
    })
}

fn through(word: &str, reboot: &str, ended: impl FnOnce(CloseCause, &str) -> Result<()>) -> Result<()> {
    let kept = PathBuf::from(KEPT).join(word);
    if kept.exists() {
        let result = after(&kept, ended);
        shell(&format!("rm -rf {} {SEEN} {PROBE}; systemctl daemon-reload", kept.display()))?;
        return result;
    }
    before(&kept)?;
    println!("starting the machine anew: {reboot}");
    File::create(RESUME)?.sync_all()?;
    File::open("/lab")?.sync_all()?;
    shell(reboot)?;
    thread::sleep(SOON);
    bail!("the machine did not start anew within {SOON:?}")
}

/// Opens, logs in, and leaves the account open on the disk: what is written there afterwards, the power cut takes.
fn before(kept: &Path) -> Result<()> {
    let host = Host::up()?;
    let kept_path = kept.display();
    fs::write(
        PROBE,
        format!(
            "[Unit]\nBefore=ssh.service\n[Service]\nType=oneshot\n\
             ExecStart=sh -c 'grep ^{ACCOUNT}: /etc/shadow > {SEEN}; ls -A /run/breakglass/keys >> {SEEN} || true'\n\
             [Install]\nWantedBy=ssh.service\n"
        ),
    )?;
    shell("systemctl daemon-reload; systemctl enable lab-probe")?;
    let opened = host.open("the machine starts anew", Duration::from_secs(3600))?;
    ensure!(host.key_lets_in(PAM)?, "the session does not work");
    let mut lasting = host.ssh(PAM, &host.key()).args(["127.0.0.1", "sleep", "86400.9"]).spawn()?;
    poll::until_true("the session's program", SOON, || Ok(super::host::running("86400.9") > 0))?;
    let entry = shell(&format!("getent shadow {ACCOUNT}"))?;
    ensure!(!entry.contains(":!*:"), "the account is not open: {entry}");
    // Nothing of this folder may be there unless all of it is: it says that the machine started anew.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    shell(&format!("mkdir -p {KEPT}; cp -a /run/access {kept_path}.new"))?;
    fs::write(format!("{kept_path}.new/boot"), boot)?;
    fs::write(format!("{kept_path}.new/session"), &opened.session)?;
    shell(&format!("mv {kept_path}.new {kept_path}; sync"))?;
    // What was open must not be closed by this process's end before the machine goes.
    std::mem::forget(host);
    ensure!(lasting.try_wait()?.is_none(), "the login ended");
    Ok(())
}

fn after(kept: &Path, ended: impl FnOnce(CloseCause, &str) -> Result<()>) -> Result<()> {
    let boot = fs::read_to_string(kept.join("boot"))?;
    ensure!(boot != fs::read_to_string("/proc/sys/kernel/random/boot_id")?, "the machine did not start anew");
    let session = fs::read_to_string(kept.join("session"))?;
    let mut cases = Cases::default();
    cases.case("the account was locked and no key there before sshd started", || {
        let seen = fs::read_to_string(SEEN).context("nobody looked before sshd started")?;
        ensure!(seen.starts_with(&format!("{ACCOUNT}:!*:")) && seen.lines().count() == 1, "seen: {seen}");
        let locked: u64 = shell("systemctl show -P ExecMainExitTimestampMonotonic breakglass-lock")?.trim().parse()?;
        let sshd: u64 = shell("systemctl show -P ExecMainStartTimestampMonotonic ssh")?.trim().parse()?;
        ensure!(locked > 0 && locked < sshd, "locked at {locked} µs, sshd started at {sshd} µs");
        Ok(())
    });
    shell(&format!("rm -rf /run/access; cp -a {} /run/access", kept.display()))?;
    // The installation comes up by itself; this waits for it, and starts the sshd without PAM again.
    let host = Host::up()?;
    cases.case("no grant lives", || {
        for port in [PAM, NO_PAM] {
            ensure!(!host.key_lets_in(port)?, "the key of before gets in at port {port}");
        }
        let status = host.status()?;
        ensure!(status.state == "locked" && status.session.is_empty(), "{status:?}");
        ensure!(super::host::running("86400.9") == 0, "a program outlived the machine");
        Ok(())
    });
    cases.case("the interrupted session is closed in the record, with the reboot named", || {
        let closed = host.closed(&session)?;
        ended(closed.cause(), &closed.by)
    });
    cases.case("the glass can be broken again", || {
        host.with_session("after the machine started anew", |_| {
            ensure!(host.key_lets_in(PAM)?, "refused");
            Ok(())
        })
    });
    cases.verdict()
}
