//! Files, disks, sockets and io_uring.

use anyhow::Result;
use breakglass_api::v1::{file_action::Kind as File, system_action::Kind as System};
use std::net::TcpListener;

use crate::{
    case::{Case, Held},
    record::{Record, acted, whole},
    stage::{Deed, Stage},
};

pub const CASES: &[Case] = &[
    Case::root(21, "file_by_io_uring", r#"HIDDEN=$file "$attack" uring-file @ text"#).held(by_ring).peers(),
    Case::own(21, "connection_by_io_uring", ring_connection).done(got_through).held(by_ring_connected),
    Case::root(22, "control_characters_in_arguments", r#"
        "$attack" act "$file" "$(printf '\033]0;owned\007\033[2J\033[8m')"
        "$attack" act "$file" "$mark"
    "#).held(raw_and_harmless),
    Case::root(29, "clock", r#"
        date -s '+3 hours' >/dev/null
        act
        date -s '-3 hours' > /dev/null
    "#).held(clock).only_in_lab("it sets the clock"),
    Case::root(44, "raw_disk", r#"
dev=$(findmnt -no SOURCE /); dd if="$dev" of=/dev/null bs=4096 count=1 2>/dev/null; python3 -c 'import os, sys; os.close(os.open(sys.argv[1], os.O_WRONLY))' "$dev" && : > "$file"
"#).held(raw_disk).only_in_lab("it opens the disk below the file system for writing"),
    Case::root(45, "descriptor_handed_to_another", HANDED).held(handed).peers(),
];

const HANDED: &str = r#"
python3 -c '
import os, socket, sys
a, b = socket.socketpair()
if os.fork() == 0:
    os.setsid()
    fds = socket.recv_fds(b, 10, 1)[1]
    os.write(fds[0], sys.argv[2].encode())
    os._exit(0)
socket.send_fds(a, [b"x"], [os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)])
os.wait()
' "$file" "$mark"
"#;

/// The way through the ring is seen; in tiers that look at system calls only the ring itself is.
fn by_ring(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::IoUring).next().is_some() && record.file(File::Opened, &deed.mark))
}

fn by_ring_connected(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.connected().any(|action| u64::from(action.port) == deed.value))
}

fn got_through(deed: &Deed) -> bool {
    deed.saw("connected")
}

fn ring_connection(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    deed.value = port.into();
    stage.run(&mut deed, &format!("\"$attack\" uring-connect {port} && echo connected"))?;
    Ok(deed)
}

/// The record has the bytes; the check of what is printed is in the tests of the reviewers' command.
fn raw_and_harmless(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let raw = record.execs().any(|exec| exec.argv.last().is_some_and(|last| last.starts_with(b"\x1b]0;owned")));
    whole(raw && acted(record, deed).is_some())
}

fn clock(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::ClockSet).count() >= 2 && acted(record, deed).is_some())
}

fn raw_disk(record: &Record<'_>, _: &Deed) -> Option<Held> {
    whole(record.files(File::Opened).any(|action| action.path.starts_with(b"/dev/vd")))
}

fn handed(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.file(File::Opened, &deed.mark))
}
