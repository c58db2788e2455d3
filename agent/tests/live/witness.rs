//! Programs outside a session while one is open, and those that come into it late.

use std::{os::unix::process::ExitStatusExt, process::Stdio};

use breakglass_agent::{kernel::ProcessId, recorder::source::Observed};
use breakglass_api::v1::{Exec, ExecFault, Ring, event::Body};

use super::harness::{Recording, exec_of};
use crate::need_kernel;

const SIGKILL: i32 = 9;

/// A command of root's, outside of every session.
fn outside(program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn ring_of(seen: &[Observed], pid: u32) -> Option<Ring> {
    seen.iter().find_map(|observed| match &observed.event.body {
        Some(Body::Exec(exec)) if exec.process.is_some_and(|process| process.pid == pid) => {
            observed.event.origin.map(|origin| origin.ring())
        }
        _ => None,
    })
}

/// Runs a command of root's and returns its record.
fn witnessed(recording: &mut Recording, command: &mut std::process::Command) -> Exec {
    let mut child = command.spawn().unwrap();
    child.wait().unwrap();
    let pid = child.id();
    recording.until("the program outside the session", |seen| exec_of(seen, pid).is_some());
    assert_eq!(ring_of(&recording.seen, pid), Some(Ring::Witness));
    exec_of(&recording.seen, pid).unwrap().clone()
}

#[test]
fn others_are_witnessed_while_a_session_is_open_and_only_then() {
    need_kernel!();
    let mut recording = Recording::start();
    let before = outside("/bin/true").spawn().unwrap().wait_with_output().unwrap();
    assert!(before.status.success());
    recording.kernel().begin_session(21).unwrap();
    let exec = witnessed(&mut recording, outside("/bin/sh").args(["-c", "exit 3", "marker-x"]).env("LD_Y", "1"));
    assert_eq!(exec.argv, [&b"/bin/sh"[..], b"-c", b"exit 3", b"marker-x"]);
    assert!(exec.env.contains(&b"LD_Y=1".to_vec()));
    assert_eq!((exec.credentials.unwrap().uid, exec.faults, exec.terminal), (0, 0, 0));
    assert_eq!(exec.parent.unwrap().pid, std::process::id());
    let slots: Vec<u32> =
        recording.seen.iter().filter(|o| matches!(o.event.body, Some(Body::Exec(_)))).map(|o| o.slot).collect();
    assert!(slots.iter().all(|slot| *slot == 21), "{slots:?}");
    recording.kernel().end_session(21).unwrap();

    let mut after = outside("/bin/true").spawn().unwrap();
    after.wait().unwrap();
    recording.settle();
    assert!(exec_of(&recording.seen, after.id()).is_none());
    assert!(recording.gaps().is_empty());
}

#[test]
fn long_arguments_of_others_are_cut_and_say_so() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(22).unwrap();
    let long = "a".repeat(9_000);
    let exec = witnessed(&mut recording, outside("/bin/true").arg(&long));
    assert_eq!(exec.faults, ExecFault::ArgvCut as u32);
    assert_eq!(exec.argv_bytes, 10 + 9_001);
    assert_eq!(exec.argv[1].len(), 4095 - 10);
    let exec = witnessed(&mut recording, outside("/bin/true").env("FILLER", &long));
    assert_eq!(exec.faults, ExecFault::EnvCut as u32);
    recording.kernel().end_session(22).unwrap();
}

#[test]
fn a_flood_of_others_costs_the_session_nothing_and_is_accounted_for() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.witness_ring = 4096);
    recording.kernel().begin_session(23).unwrap();
    // Not read meanwhile.
    for _ in 0..40 {
        assert!(outside("/bin/true").status().unwrap().success(), "others are never killed");
    }
    let mut own = recording.command("/bin/true").spawn().unwrap();
    assert!(own.wait().unwrap().success());
    recording.until_exit_of(own.id());
    // Others of this machine go on running programs; from here on they are nobody's business.
    recording.kernel().end_session(23).unwrap();
    recording.settle();
    assert_eq!(ring_of(&recording.seen, own.id()), Some(Ring::Audit));
    let counters = recording.kernel().counters().unwrap();
    let [audit, witness, _] = counters.rings;
    assert!(witness.dropped > 0 && audit.dropped == 0, "{counters:?}");
    let named: u64 = recording.all_gaps().iter().filter(|gap| gap.ring() == Ring::Witness).map(|gap| gap.records).sum();
    assert_eq!(named, witness.dropped);
}

#[test]
fn what_is_tagged_late_is_recorded_from_then_on() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(24).unwrap();
    let mut shell = outside("/bin/sh");
    let mut shell = shell.args(["-c", "read x; /bin/true late; (sleep 0.01; exec /bin/true later)"]);
    shell = shell.stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let pid = shell.id();
    recording.until("the shell", |seen| exec_of(seen, pid).is_some());
    let process = exec_of(&recording.seen, pid).unwrap().process.unwrap();
    let id = ProcessId { tgid: process.pid, start_ns: process.start_ns };
    let mut tagger = recording.kernel().tagger().unwrap();
    assert!(tagger.tag(id, 24).unwrap());
    assert_eq!(recording.kernel().tagged(24).unwrap(), [id]);
    drop(shell.stdin.take());
    shell.wait().unwrap();
    recording.until_exit_of(pid);
    let rings: Vec<_> = recording
        .seen
        .iter()
        .filter_map(|observed| match &observed.event.body {
            Some(Body::Exec(exec)) if exec.argv.len() == 2 && exec.argv[1].starts_with(b"late") => {
                Some(observed.event.origin.unwrap().ring())
            }
            _ => None,
        })
        .collect();
    assert_eq!(rings, [Ring::Audit, Ring::Audit]);
    assert!(!tagger.tag(id, 24).unwrap(), "it has ended");
    assert!(recording.kernel().tagged(24).unwrap().is_empty());
    recording.kernel().end_session(24).unwrap();
}

#[test]
fn without_a_grant_the_account_is_killed_where_that_is_policy() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.kill_ungranted = true);
    let output = recording.command("/bin/echo").arg("ran").output().unwrap();
    assert_eq!((output.status.signal(), &output.stdout[..]), (Some(SIGKILL), &b""[..]));
    recording.until("the record", |seen| super::harness::execs(seen).iter().any(|exec| exec.killed));
    recording.kernel().begin_session(25).unwrap();
    let output = recording.command("/bin/echo").arg("ran").output().unwrap();
    assert_eq!(output.stdout, b"ran\n");
    recording.kernel().end_session(25).unwrap();
    let output = recording.command("/bin/echo").arg("ran").output().unwrap();
    assert_eq!(output.stdout, b"");
}
