//! Agents come and go; the programs go on.

use super::harness::{Recording, execs};
use crate::need_kernel;

#[test]
fn a_new_agent_goes_on_where_the_old_one_stopped() {
    need_kernel!();
    let mut recording = Recording::guarded();
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
    let mut recording = Recording::guarded();
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
    let mut recording = Recording::guarded();
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

#[test]
fn an_upgrade_carries_session_terminals_and_unread_records_over() {
    need_kernel!();
    let mut recording = Recording::guarded();
    recording.kernel().begin_session(9).unwrap();
    let number = |recording: &Recording, n: u32| {
        assert!(recording.command("/bin/true").arg(n.to_string()).status().unwrap().success());
    };
    // One that was there before, and goes on.
    let mut shell = recording.command("/bin/sh").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let input = shell.stdin.take().unwrap();
    let say = |line: &str| std::io::Write::write_all(&mut &input, line.as_bytes()).unwrap();
    say("/bin/true 0\n");
    for n in 1..20 {
        number(&recording, n);
    }
    let position = {
        use breakglass_agent::recorder::source::EventSource;
        recording.pump(std::time::Duration::from_millis(50));
        recording.reader.as_ref().unwrap().position()
    };
    for n in 20..40 {
        number(&recording, n);
    }
    recording.reader = None;
    recording.kernel = None;
    number(&recording, 40);
    // Another object, with the same layout of its maps.
    recording.options.build = Some("0123456789abcdef".repeat(4));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let run = std::sync::atomic::AtomicU32::new(0);
    let (uid, stop, run) = (recording.uid, &stop, &run);
    std::thread::scope(|scope| {
        // What happens while they change over must be there as well.
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let n = 41 + run.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let status = super::harness::command_as(uid, "/bin/true").arg(n.to_string()).status();
                assert!(matches!(status, Ok(status) if status.success()), "number {n}: {status:?}");
            }
        });
        let (kernel, mut reader) = breakglass_agent::kernel::Kernel::start(&recording.options).unwrap();
        breakglass_agent::recorder::source::EventSource::resume(&mut reader, &position).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        recording.kernel = Some(kernel);
        recording.reader = Some(reader);
    });
    assert!(recording.kernel().info().took_over);
    let last = 41 + run.load(std::sync::atomic::Ordering::Relaxed);
    say(&format!("/bin/true {last}\n"));
    drop(input);
    assert!(shell.wait().unwrap().success());
    recording.settle();
    let mut numbers: Vec<u32> = execs(&recording.seen)
        .iter()
        .filter_map(|exec| String::from_utf8_lossy(exec.argv.get(1)?).parse().ok())
        .collect();
    numbers.sort_unstable();
    // Where the change falls between the two programs at one tracepoint, both see the exec that is there then (docs/KERNEL.md): one, of one
    // process, in two records. Nothing else may come twice.
    let twice: Vec<u32> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    if let [number] = twice[..] {
        let records: Vec<_> = recording
            .seen
            .iter()
            .filter_map(|observed| match &observed.event.body {
                Some(breakglass_api::v1::event::Body::Exec(exec)) => Some((exec, observed.event.origin?)),
                _ => None,
            })
            .filter(|(exec, _)| exec.argv.get(1).is_some_and(|argument| *argument == number.to_string().into_bytes()))
            .map(|(exec, origin)| (exec.process, origin.cpu, origin.seq))
            .collect();
        assert!(records.len() == 2 && records[0].0 == records[1].0, "two programs ran: {records:?}");
        assert!(records[0].1 == records[1].1 && records[0].2 != records[1].2, "one record came twice: {records:?}");
        numbers.dedup();
    }
    assert_eq!(numbers, (0..=last).collect::<Vec<_>>());
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    // Gaps are nobody's; others' programs may overflow their own small ring.
    let other = recording.seen.iter().find(|observed| {
        observed.slot != 9 && !matches!(&observed.event.body, Some(breakglass_api::v1::event::Body::Gap(_)))
    });
    assert!(other.is_none(), "{other:?}");
    // One folder is left, with one set of programs.
    assert_eq!(std::fs::read_dir(&recording.options.pins).unwrap().count(), 1);
    recording.kernel().end_session(9).unwrap();
}
