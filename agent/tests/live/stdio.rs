//! Sessions without a terminal: the test has the ends that sshd has.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::Stdio,
};

use breakglass_api::v1::{Process, event::Body, stdio_data::Direction};

use super::harness::Recording;
use crate::need_kernel;

/// What was recorded of one stream of a login.
fn stream(recording: &Recording, direction: Direction, number: u32) -> (Vec<u8>, Vec<Process>) {
    let (mut all, mut logins) = (Vec::new(), Vec::new());
    for observed in &recording.seen {
        if let Some(Body::StdioData(data)) = &observed.event.body
            && (data.direction(), data.stream) == (direction, number)
        {
            assert_eq!((data.missing, data.by.unwrap().pid), (0, std::process::id()));
            all.extend_from_slice(&data.data);
            logins.extend(data.login);
        }
    }
    logins.dedup();
    (all, logins)
}

#[test]
fn pipes_are_recorded_in_both_directions_byte_for_byte() {
    need_kernel!();
    const BYTES: usize = 3 << 20;
    let mut recording = Recording::start();
    recording.kernel().begin_session(4).unwrap();
    let mut child = recording
        .command("/bin/sh")
        .args(["-c", "echo to standard error >&2; cat | cat; head -c 100 /dev/zero | wc -c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script: Vec<u8> = (0..BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut input = child.stdin.take().unwrap();
    let sent = script.clone();
    let writing = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let mut output = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        output.read_to_end(&mut all).unwrap();
        all
    });
    recording.until("the end of the output", |_| reading.is_finished());
    writing.join().unwrap();
    let shown = reading.join().unwrap();
    let mut errors = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut errors).unwrap();
    child.wait().unwrap();
    recording.until_exit_of(child.id());
    recording.settle();
    assert_eq!(shown.len(), BYTES + 4);
    let (recorded, logins) = stream(&recording, Direction::Output, 1);
    assert!(recorded == shown, "{} recorded, {} shown", recorded.len(), shown.len());
    assert_eq!(logins.iter().map(|login| login.pid).collect::<Vec<_>>(), [child.id()]);
    let (recorded, _) = stream(&recording, Direction::Input, 0);
    assert!(recorded == script, "{} recorded, {} written", recorded.len(), script.len());
    assert_eq!(stream(&recording, Direction::Output, 2).0, b"to standard error\n");
    assert_eq!(stream(&recording, Direction::Output, 2).0, errors);
    assert!(recording.seen.iter().all(|observed| observed.slot == 4));
    assert!(recording.gaps().is_empty());
    recording.kernel().end_session(4).unwrap();
}

#[test]
fn a_pair_of_sockets_carries_both_directions() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(5).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    // As a file: read and write, as sshd does, not send and receive.
    let mut ours = File::from(OwnedFd::from(ours));
    let end = |stream: &UnixStream| Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
    let mut child = recording
        .command("/bin/sh")
        .args(["-c", "read line; echo \"got $line\"; read line; echo \"then $line\" >&2"])
        .stdin(end(&theirs))
        .stdout(end(&theirs))
        .stderr(end(&theirs))
        .spawn()
        .unwrap();
    drop(theirs);
    ours.write_all(b"one\n").unwrap();
    ours.write_all(b"two\n").unwrap();
    let mut shown = Vec::new();
    ours.read_to_end(&mut shown).unwrap();
    child.wait().unwrap();
    recording.until_exit_of(child.id());
    recording.settle();
    assert_eq!(shown, b"got one\nthen two\n");
    assert_eq!(stream(&recording, Direction::Input, 0).0, b"one\ntwo\n");
    assert_eq!(stream(&recording, Direction::Output, 1).0, shown);
    recording.kernel().end_session(5).unwrap();
}

#[test]
fn pipes_inside_a_session_and_those_of_others_are_left_alone() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(6).unwrap();
    let inside = recording
        .command("/bin/sh")
        .args(["-c", "echo private | cat > /dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(inside.success());
    let other = std::process::Command::new("/bin/echo").arg("other").output().unwrap();
    assert_eq!(other.stdout, b"other\n");
    recording.settle();
    assert!(recording.seen.iter().all(|observed| !matches!(observed.event.body, Some(Body::StdioData(_)))));
    recording.kernel().end_session(6).unwrap();
}
