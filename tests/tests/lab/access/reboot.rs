//! The machine starts anew while a session is open: by losing its power, in order, and by the session's own doing. After it the account is locked before sshd takes
//! anybody, nothing is left of the grant, the record says how the session ended, and the glass can be broken again.
//!
//! Each test is run twice: the first run opens and starts the machine anew, the second, on the next boot, looks.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use breakglass_api::v1::{CloseCause, SessionClosed, event::Body};
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

/// The kernel on which the session resets a machine of two processors; on the others it has one.
const WITH_TWO: &str = "6.12";
const SECOND_PROCESSOR: &str = "/sys/devices/system/cpu/cpu1/online";

/// A unit that looks at the locks before sshd starts, and where it writes.
const PROBE: &str = "/etc/systemd/system/lab-probe.service";
const SEEN: &str = "/var/lib/lab-probe-seen";

#[test]
fn after_a_power_cut_it_is_locked_closed_and_opens_again() -> Result<()> {
    let Some(_guest) = Guest::on("6.1") else { return Ok(()) };
    // Opened now: in a session it is refused.
    let mut trigger = File::options().write(true).open("/proc/sysrq-trigger")?;
    let cut = move |_: &Host| trigger.write_all(b"b").context("/proc/sysrq-trigger");
    through("power", cut, |_, closed| {
        let (cause, by) = (closed.cause(), &closed.by);
        ensure!(cause == CloseCause::Reboot, "closed because of {cause:?} ({by})");
        Ok(())
    })
}

#[test]
fn after_a_reset_by_the_session_itself_its_last_program_is_in_the_record() -> Result<()> {
    let Some(guest) = Guest::here() else { return Ok(()) };
    // Between the program's end and the call there is nothing, not even a file to be read. With one processor nothing makes the record
    // durable while the call waits, so it is refused until the agent has run (docs/KERNEL.md, `guard-boot`): there it is asked
    // again until it goes through.
    let alone = guest.kernel != WITH_TWO;
    let reset = move |host: &Host| {
        if !alone && Path::new(SECOND_PROCESSOR).exists() {
            shell(&format!("echo 1 > {SECOND_PROCESSOR}"))?;
        }
        let again = if alone { "[(time.sleep(2), libc.reboot(0x1234567)) for _ in range(15)]; " } else { "" };
        let script = format!(
            "import ctypes, os, time; libc = ctypes.CDLL(None, use_errno=True); \
             os.spawnv(os.P_WAIT, '/bin/echo', ['echo', 'last-deed']); libc.reboot(0x1234567); {again}\
             print(os.strerror(ctypes.get_errno()))"
        );
        let mut ssh = host.ssh(PAM, &host.key());
        let output = ssh.args(["127.0.0.1", &format!("sudo python3 -c \"{script}\"")]).output()?;
        bail!("it went on: {}", super::host::said(&output))
    };
    through("reset", reset, |host, closed| {
        ensure!(closed.cause() == CloseCause::Reboot, "closed because of {:?} ({})", closed.cause(), closed.by);
        host.recorded("the last program to be in the record", |event| match event.body {
            Some(Body::Exec(exec)) => exec.argv.iter().any(|argument| argument == b"last-deed").then_some(()),
            _ => None,
        })
    })
}

#[test]
fn after_an_orderly_reboot_it_is_locked_closed_and_opens_again() -> Result<()> {
    let Some(_guest) = Guest::on("6.12") else { return Ok(()) };
    let reboot = |_: &Host| {
        // What it asks for may end it before it can say that all is well.
        println!("{:?}", shell("systemctl reboot"));
        Ok(())
    };
    through("orderly", reboot, |_, closed| {
        let (cause, by) = (closed.cause(), &closed.by);
        ensure!(cause == CloseCause::Reboot, "closed because of {cause:?} ({by})");
        // By the agent itself while the machine went down.
        ensure!(by.contains("the machine goes down"), "closed by {by}");
        Ok(())
    })
}

fn through(
    word: &str,
    reboot: impl FnOnce(&Host) -> Result<()>,
    ended: impl FnOnce(&Host, &SessionClosed) -> Result<()>,
) -> Result<()> {
    let kept = PathBuf::from(KEPT).join(word);
    if kept.exists() {
        let result = after(&kept, ended);
        shell(&format!("rm -rf {} {SEEN} {PROBE}; systemctl daemon-reload", kept.display()))?;
        return result;
    }
    let host = before(&kept)?;
    println!("starting the machine anew: {word}");
    File::create(RESUME)?.sync_all()?;
    File::open("/lab")?.sync_all()?;
    // What was open must not be closed by this process's end before the machine goes.
    let host = std::mem::ManuallyDrop::new(host);
    let asked = reboot(&host);
    if asked.is_ok() {
        thread::sleep(SOON);
    }
    drop(std::mem::ManuallyDrop::into_inner(host));
    fs::remove_file(RESUME)?;
    fs::remove_dir_all(&kept)?;
    asked?;
    bail!("the machine did not start anew within {SOON:?}")
}

/// Opens, logs in, and leaves the account open on the disk: what is written there afterwards, the power cut takes.
fn before(kept: &Path) -> Result<Host> {
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
    ensure!(lasting.try_wait()?.is_none(), "the login ended");
    Ok(host)
}

fn after(kept: &Path, ended: impl FnOnce(&Host, &SessionClosed) -> Result<()>) -> Result<()> {
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
        ended(&host, &closed)
    });
    cases.case("the glass can be broken again", || {
        host.with_session("after the machine started anew", |_| {
            ensure!(host.key_lets_in(PAM)?, "refused");
            Ok(())
        })
    });
    cases.verdict()
}
