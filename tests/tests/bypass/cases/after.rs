//! What is to outlast the session, and what is done while the glass is whole.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result};
use breakglass_api::v1::{LeftBehind, event::Body, left_behind::Category};
use breakglass_tests::{machine, poll};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    case::{Case, Held},
    record::{Record, whole},
    stage::{Deed, Stage},
};

pub const CASES: &[Case] = &[
    Case::own(27, "survivors", survivors).held(nobody_survived),
    Case::own(27, "without_a_first_thread", hider).held(nobody_hid),
    Case::own(27, "under_a_mount_over_its_proc", hider).held(nobody_hid),
    Case::own(27, "timer_for_later", door).held(door_listed).only_in_lab("it needs systemd as PID 1"),
    Case::own(28, "key_of_root", door).held(door_listed).only_in_lab(DOORS),
    Case::own(28, "second_root", door).held(door_listed).only_in_lab(DOORS),
    Case::own(28, "sudo_for_everybody", door).held(door_listed).only_in_lab(DOORS),
    Case::own(28, "setuid_shell", door).held(door_listed).only_in_lab(DOORS),
    Case::own(28, "pam_lets_all_in", door).held(door_listed).only_in_lab(DOORS),
    Case::own(28, "preloaded_library", door).held(door_listed).only_in_lab(DOORS),
    Case::own(30, "becomes_the_account", become_account).held(alerted),
    Case::own(30, "job_of_the_account", job_of_account).held(alerted).only_in_lab("it needs systemd as PID 1"),
    Case::own(57, "tunnel_without_a_program", tunnel).done(tunnel_answered).held(tunnel_known),
];

const DOORS: &str = "it opens doors on the machine";

/// What each door is made with, where it shows, and how it is taken back.
const MADE: &[(&str, &str, Category, &str)] = &[
    (
        "timer_for_later",
        "systemd-run --quiet --on-active=1h --unit=later-$$ /bin/true",
        Category::Systemd,
        "systemctl stop 'later-*.timer'",
    ),
    (
        "key_of_root",
        r#"
        mkdir -p /root/.ssh
        cat "$key.pub" >> /root/.ssh/authorized_keys
    "#,
        Category::AuthorizedKey,
        "rm /root/.ssh/authorized_keys",
    ),
    ("second_root", "echo 'toor:x:0:0::/root:/bin/sh' >> /etc/passwd", Category::User, "sed -i /^toor:/d /etc/passwd"),
    (
        "sudo_for_everybody",
        "echo 'ALL ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/zz",
        Category::Sudoers,
        "rm /etc/sudoers.d/zz",
    ),
    (
        "setuid_shell",
        "cp /bin/dash /usr/local/bin/su0; chmod 4755 /usr/local/bin/su0",
        Category::PrivilegedFile,
        "rm /usr/local/bin/su0",
    ),
    (
        "pam_lets_all_in",
        "sed -i '1i auth sufficient pam_permit.so' /etc/pam.d/su",
        Category::Pam,
        "sed -i 1d /etc/pam.d/su",
    ),
    ("preloaded_library", "echo /usr/lib/none.so > /etc/ld.so.preload", Category::Loader, "rm -f /etc/ld.so.preload"),
];

/// What the session that opened the doors left behind; all doors share it.
static LEFT: Mutex<Option<LeftBehind>> = Mutex::new(None);

/// Opens every door in one session, and closes that.
fn door(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let mut left = LEFT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if left.is_none() {
        let script: String = MADE.iter().map(|(_, made, _, _)| format!("{made}\n")).collect();
        stage.run(&mut deed, &script)?;
        let session = stage.opened.session.clone();
        stage.stack.close()?;
        let mut query = stage.stack.query()?;
        let found = poll::until("what the session left behind", Duration::from_secs(90), || {
            Ok(query.session(&session)?.left_behind)
        });
        for (name, _, _, undo) in MADE {
            machine::run(Command::new("sh").args(["-c", undo])).with_context(|| format!("cannot take back {name}"))?;
        }
        *left = Some(found?);
        stage.hang_up();
    }
    fs::write(&deed.file, "")?;
    let (_, _, category, _) = MADE.iter().find(|(name, ..)| *name == case.name).context("no such door")?;
    let listed = left.as_ref().is_some_and(|left| left.changes.iter().any(|change| change.category() == *category));
    deed.value = u64::from(listed);
    Ok(deed)
}

fn door_listed(_: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(deed.value == 1)
}

/// Everything that tries to outlive the login; then the session is closed.
fn survivors(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let script = r#"
        for how in 'nohup' 'setsid' 'setsid nohup setpriv --reuid 65534 --regid 65534 --clear-groups'
        do $how sleep 12345 </dev/null >/dev/null 2>&1 & done
        (echo 0 > /proc/self/loginuid
        setsid sh -c 'trap "" TERM HUP INT
        while :
        do sleep 12345
        done' </dev/null >/dev/null 2>&1 &)
        command -v tmux >/dev/null && tmux -f /dev/null new-session -d 'sleep 12345'
        act
    "#;
    stage.run(&mut deed, script)?;
    let sleeping = || machine::processes_with(&["sleep", "12345"]).len();
    poll::until_true("all that is to outlive it", poll::SOON, || Ok(sleeping() >= 4))?;
    stage.stack.close()?;
    stage.hang_up();
    deed.value = sleeping() as u64;
    Ok(deed)
}

fn nobody_survived(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let closed = record
        .bodies()
        .any(|body| matches!(body, Body::SessionClosed(closed) if closed.survivors.is_empty() && closed.killed >= 4));
    whole(closed && deed.value == 0)
}

/// How a process hides from whoever goes by `/proc`, keeping `$hold` locked.
const HIDDEN: &[(&str, &str)] = &[
    ("without_a_first_thread", r#"setsid "$attack" headless "$hold" </dev/null >/dev/null 2>&1 &"#),
    (
        "under_a_mount_over_its_proc",
        r#"setsid sh -c 'mount --bind /tmp /proc/$$; exec flock --no-fork "$0" sleep 12345' "$hold" </dev/null >/dev/null 2>&1 &"#,
    ),
];

/// One that hides; then the session is closed.
fn hider(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let (_, start) = HIDDEN.iter().find(|(name, _)| *name == case.name).context("nobody hides so")?;
    let hold = deed.file.with_extension("hold");
    let script = format!("hold={}\n{start}\nact\n", hold.display());
    stage.run(&mut deed, &script)?;
    let lives =
        || Ok(fs::exists(&hold)? && Flock::lock(fs::File::open(&hold)?, FlockArg::LockExclusiveNonblock).is_err());
    poll::until_true("the one that hides", poll::SOON, lives)?;
    stage.stack.close()?;
    stage.hang_up();
    deed.value = u64::from(lives()?);
    fs::remove_file(&hold)?;
    Ok(deed)
}

fn nobody_hid(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let closed = record
        .bodies()
        .any(|body| matches!(body, Body::SessionClosed(closed) if closed.survivors.is_empty() && closed.killed >= 1));
    whole(closed && deed.value == 0)
}

/// The glass must be whole for it.
fn close(stage: &mut Stage) -> Result<()> {
    if stage.stack.status()?.state == "open" {
        stage.stack.close()?;
        stage.hang_up();
    }
    stage.stack.wait_for_state("locked").map(drop)
}

fn become_account(stage: &mut Stage, case: &Case) -> Result<Deed> {
    close(stage)?;
    let mut deed = stage.prepare(case)?;
    let attack = stage.folder.join("attack");
    let uid = stage.stack.account.uid.to_string();
    machine::run(
        Command::new(machine::program("setpriv")?)
            .args(["--reuid", &uid, "--clear-groups"])
            .arg(attack)
            .arg("act")
            .arg(&deed.file)
            .arg(&deed.mark)
            .stdin(Stdio::null()),
    )?;
    deed.ended = false;
    Ok(deed)
}

fn job_of_account(stage: &mut Stage, case: &Case) -> Result<Deed> {
    close(stage)?;
    let deed = stage.prepare(case)?;
    let uid = format!("--uid={}", stage.stack.account.uid);
    let mut command = Command::new(machine::program("systemd-run")?);
    command
        .args(["--quiet", "--wait", &uid])
        .arg(stage.folder.join("attack"))
        .arg("act")
        .arg(&deed.file)
        .arg(&deed.mark);
    machine::run(&mut command)?;
    Ok(deed)
}

/// The alert names the program.
fn alerted(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.alerts().any(|alert| alert.code == "exec-without-grant" && alert.message.contains(&deed.mark)))
}

/// The connection itself as a way through the host: no shell, no program.
fn tunnel(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let output = crate::stage::finish(stage.ssh(&["-W", &format!("127.0.0.1:{port}")]).stdin(Stdio::null()))?;
    deed.complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    listener.set_nonblocking(true)?;
    deed.value = port.into();
    if listener.accept().is_ok() {
        fs::write(&deed.file, "")?;
    }
    Ok(deed)
}

/// It got through, or the server said no.
fn tunnel_answered(deed: &Deed) -> bool {
    deed.acted() || ["administratively prohibited", "refused by peer"].iter().any(|no| deed.complaint.contains(no))
}

fn tunnel_known(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    if !deed.acted() {
        return Some(Held::TurnedAway);
    }
    whole(record.connected().any(|action| u64::from(action.port) == deed.value))
}
