//! Sessions: their number, their end, and what cannot be recorded.

use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::Stdio,
};

use breakglass_agent::config::Tier;
use breakglass_api::v1::event::Body;

use super::harness::{Recording, exec_of, execs};
use crate::need_kernel;

const SIGKILL: i32 = 9;

#[test]
fn tasks_carry_the_number_of_the_open_session() {
    need_kernel!();
    let mut recording = Recording::start();
    let mut outside = recording.command("/bin/true").spawn().unwrap();
    outside.wait().unwrap();
    recording.kernel().begin_session(7).unwrap();
    let mut inside = recording.command("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = inside.id();
    recording.until("the exec", |seen| exec_of(seen, pid).is_some());
    let tagged = recording.kernel().tagged(7).unwrap();
    assert_eq!(tagged.iter().map(|process| process.tgid).collect::<Vec<_>>(), [pid]);
    drop(inside.stdin.take());
    inside.wait().unwrap();
    recording.until_exit_of(pid);
    assert!(recording.kernel().tagged(7).unwrap().is_empty());
    recording.kernel().end_session(7).unwrap();
    let slot_of = |pid: u32| {
        let of_pid = |observed: &&breakglass_agent::recorder::source::Observed| matches!(&observed.event.body, Some(Body::Exec(exec)) if exec.process.unwrap().pid == pid);
        recording.seen.iter().find(of_pid).unwrap().slot
    };
    assert_eq!((slot_of(outside.id()), slot_of(pid)), (0, 7));
}

#[test]
fn in_a_closing_session_nothing_new_runs() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(3).unwrap();
    let mut shell = recording
        .command("/bin/sh")
        .args(["-c", "read x; /bin/true; echo alive"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = shell.id();
    recording.until("the exec", |seen| exec_of(seen, pid).is_some());
    recording.kernel().closing(3).unwrap();

    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut said = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(shell.wait().unwrap().signal(), Some(SIGKILL));
    assert_eq!(said, "");

    let output = recording.command("/bin/echo").arg("alive").output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGKILL));
    assert_eq!(output.stdout, b"");
    recording.until_exit_of(pid);
    recording.kernel().end_session(3).unwrap();

    let output = recording.command("/bin/echo").arg("again").output().unwrap();
    assert_eq!(output.stdout, b"again\n");
}

#[test]
fn what_cannot_be_recorded_does_not_run() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.audit_ring = 4096);
    let mut ran = 0;
    let killed = (0..200).find_map(|_| {
        let output = recording.command("/bin/echo").arg("ran").output().unwrap();
        ran += usize::from(output.stdout == b"ran\n");
        (output.status.signal() == Some(SIGKILL)).then_some(output.stdout)
    });
    assert_eq!(killed.as_deref(), Some(&b""[..]), "the ring is full after {ran} commands");
    recording.settle();
    let recorded = execs(&recording.seen).len();
    assert!(recorded >= ran, "{ran} ran, {recorded} were recorded");
}

/// Starts more processes than the table has room for; how the shell that starts them ends, and what it says.
fn beyond_the_table(recording: &mut Recording) -> std::process::Output {
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 2 & done; wait; echo survived";
    let output = recording.command("/bin/sh").args(["-c", script]).output().unwrap();
    recording.settle();
    output
}

fn alerts(recording: &Recording, code: &str) -> usize {
    let alerted = |observed: &&breakglass_agent::recorder::source::Observed| matches!(&observed.event.body, Some(Body::Alert(alert)) if alert.code == code);
    recording.seen.iter().filter(alerted).count()
}

fn not_followed(recording: &Recording) -> usize {
    alerts(recording, "process-not-followed")
}

#[test]
fn a_session_with_too_many_processes_gets_no_more() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.tag_table = 32);
    recording.kernel().begin_session(60).unwrap();
    // Beyond what a table may hold that must have room for those that are killed.
    let most = 30;
    let script = "for i in $(seq 40); do sleep 60 & done; wait; echo survived";
    let mut shell = recording.command("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(shell.wait().unwrap().signal(), Some(SIGKILL));
    recording.settle();
    // The shell is gone, and every one of its children is followed.
    let left = recording.kernel().tagged(60).unwrap();
    assert_eq!(left.len(), most - 1, "{left:?}");
    assert_eq!((alerts(&recording, "too-many-processes"), not_followed(&recording)), (1, 0));
    let counters = recording.kernel().counters().unwrap();
    assert!(counters.failures.iter().all(|failure| failure.site != "tag-insert"), "{counters:?}");
    // When some have ended there is room for as many.
    for process in &left[..2] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.tgid as i32), nix::sys::signal::SIGKILL).unwrap();
    }
    let fewer = |recording: &mut Recording, number: usize| {
        let limit = std::time::Instant::now() + super::harness::DEADLINE;
        while recording.kernel().tagged(60).unwrap().len() > number {
            assert!(std::time::Instant::now() < limit, "tags stay");
            recording.pump(std::time::Duration::from_millis(50));
        }
    };
    fewer(&mut recording, most - 3);
    assert_eq!(recording.command("/bin/sh").args(["-c", "/bin/echo again; :"]).output().unwrap().stdout, b"again\n");
    for process in &left[2..] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.tgid as i32), nix::sys::signal::SIGKILL).unwrap();
    }
    fewer(&mut recording, 0);
    recording.kernel().end_session(60).unwrap();
}

#[test]
fn what_cannot_be_followed_does_not_run() {
    need_kernel!();
    let mut recording = Recording::with(|options| options.tag_table = 1);
    recording.kernel().begin_session(61).unwrap();
    let output = beyond_the_table(&mut recording);
    assert_eq!((output.status.signal(), &output.stdout[..]), (Some(SIGKILL), &b""[..]));
    assert!(not_followed(&recording) > 0);
    let counters = recording.kernel().counters().unwrap();
    assert!(counters.failures.iter().any(|failure| failure.site == "tag-insert"), "{counters:?}");
    // Room again: what can be followed runs.
    let limit = std::time::Instant::now() + super::harness::DEADLINE;
    while !recording.kernel().tagged(61).unwrap().is_empty() {
        assert!(std::time::Instant::now() < limit, "tags stay");
        recording.pump(std::time::Duration::from_millis(50));
    }
    assert_eq!(recording.command("/bin/echo").arg("again").output().unwrap().stdout, b"again\n");
    recording.kernel().end_session(61).unwrap();
}

#[test]
fn what_cannot_be_followed_is_an_alert_where_the_policy_is_to_record() {
    need_kernel!();
    let mut recording = Recording::with(|options| {
        options.tag_table = 4;
        options.deny_unrecorded = false;
    });
    recording.kernel().begin_session(62).unwrap();
    let output = beyond_the_table(&mut recording);
    assert_eq!(output.stdout, b"survived\n");
    assert!(not_followed(&recording) > 0);
    recording.kernel().end_session(62).unwrap();
}

#[test]
fn losses_are_counted_exactly() {
    need_kernel!();
    let mut recording = Recording::with(|options| {
        options.audit_ring = 16 << 10;
        options.deny_unrecorded = false;
    });
    let script = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); /bin/true $i; done";
    let status = recording.command("/bin/sh").args(["-c", script]).status().unwrap();
    assert!(status.success(), "nothing is killed where the policy is to record");
    recording.settle();
    let after = recording.command("/bin/true").status().unwrap();
    assert!(after.success());
    recording.settle();
    let counters = recording.kernel().counters().unwrap();
    let [audit, ..] = counters.rings;
    assert!(audit.dropped > 0);
    assert_eq!(recording.gaps().iter().map(|gap| gap.records).sum::<u64>(), audit.dropped);
    assert_eq!(recording.accounted(), audit.produced);
    assert!(recording.gaps().iter().all(|gap| gap.cause == "ring-full"));
    assert!(counters.failures.iter().any(|failure| failure.site == "ring-audit" && failure.count == audit.dropped));
}

#[test]
fn execs_that_the_kernel_refused_are_recorded_and_folded() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(5).unwrap();
    let mut child = recording.command("/usr/bin/env").arg("no-such-program").stderr(Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    let mut refused = recording.command("/usr/bin/env").arg("/etc/passwd").stderr(Stdio::null()).spawn().unwrap();
    refused.wait().unwrap();
    recording.until_exit_of(refused.id());
    let failed: Vec<_> = recording
        .seen
        .iter()
        .filter_map(|observed| match &observed.event.body {
            Some(Body::ExecFailed(failed)) => Some((failed.filename.as_slice(), failed.errno, failed.count)),
            _ => None,
        })
        .collect();
    const ENOENT: u32 = 2;
    const EACCES: u32 = 13;
    assert_eq!(failed, [(&b"/usr/bin/no-such-program"[..], ENOENT, 2), (&b"/etc/passwd"[..], EACCES, 1)]);
    recording.kernel().end_session(5).unwrap();
}

#[test]
fn the_doctor_says_what_is_running() {
    need_kernel!();
    let mut recording = Recording::start();
    let found = breakglass_agent::kernel::doctor(&recording.options);
    let info = recording.kernel().info().clone();
    println!("{} because {}", info.tier, info.tier_reason);
    assert_eq!(found.tier, info.tier);
    assert_eq!(found.object_sha256, info.object_sha256);
    assert!(found.recording);
    assert!(info.programs.iter().all(|(name, _)| found.probes.iter().any(|probe| probe.program == *name)));
    let attached: Vec<&str> = info.programs.iter().map(|(name, _)| *name).collect();
    assert_eq!(attached.contains(&"pty_write_exit"), info.tier >= Tier::Trace);
}
