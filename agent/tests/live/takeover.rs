//! Agents come and go; the programs go on.

use super::harness::{Recording, execs};
use crate::need_kernel;

#[test]
fn a_new_agent_goes_on_where_the_old_one_stopped() {
    need_kernel!();
    let mut recording = Recording::start();
    assert!(!recording.kernel().info().took_over);
    let number = |recording: &mut Recording, n: usize| {
        assert!(recording.command("/bin/true").arg(n.to_string()).status().unwrap().success());
    };
    for n in 0..5 {
        number(&mut recording, n);
    }
    recording.settle();
    for n in 5..10 {
        number(&mut recording, n);
    }
    recording.restart();
    assert!(recording.kernel().info().took_over);
    for n in 10..15 {
        number(&mut recording, n);
    }
    recording.settle();
    let numbers: Vec<String> =
        execs(&recording.seen).iter().map(|exec| String::from_utf8_lossy(&exec.argv[1]).into_owned()).collect();
    assert_eq!(numbers, (0..15).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(recording.gaps().is_empty());
}

#[test]
fn what_was_read_but_not_released_is_read_again_and_what_was_durable_is_not() {
    need_kernel!();
    use breakglass_agent::{kernel::Kernel, recorder::source::EventSource};
    let mut recording = Recording::start();
    assert!(recording.command("/bin/true").arg("a").status().unwrap().success());
    let mut lost = Vec::new();
    let mut reader = recording.reader.take().unwrap();
    reader.read(&mut lost, 1 << 20).unwrap();
    assert!(!lost.is_empty());
    // Killed between the durable frame and the release: the frame's position counts, not the ring's.
    let durable = reader.position();
    assert!(recording.command("/bin/true").arg("b").status().unwrap().success());
    reader.read(&mut lost, 1 << 20).unwrap();
    drop(reader);
    let (kernel, mut reader) = Kernel::start(&recording.options).unwrap();
    reader.resume(&durable).unwrap();
    recording.kernel = Some(kernel);
    recording.reader = Some(reader);
    recording.settle();
    let arguments: Vec<&[u8]> = execs(&recording.seen).iter().map(|exec| exec.argv[1].as_slice()).collect();
    assert_eq!(arguments, [b"b"]);
    assert!(recording.gaps().is_empty());
}

#[test]
fn a_session_goes_on_while_no_agent_runs() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(9).unwrap();
    recording.reader = None;
    recording.kernel = None;
    assert!(recording.command("/usr/bin/env").arg("no-such-program").status().unwrap().code() == Some(127));
    recording.restart();
    recording.settle();
    assert!(recording.seen.iter().all(|observed| observed.slot == 9));
    let failed = recording
        .seen
        .iter()
        .filter(|observed| matches!(&observed.event.body, Some(breakglass_api::v1::event::Body::ExecFailed(_))));
    assert_eq!(failed.count(), 1);
    recording.kernel().end_session(9).unwrap();
}
