//! What goes in and out of a session without a terminal, at sshd's ends of the pipes or pairs of sockets.
//!
//! At the session's own ends a shell reads its script byte by byte, and children share them; at sshd's ends the data passes once,
//! in the pieces in which it came over the network. An end is known by its inode, whoever uses it: what is written to the pipe
//! that is descriptor 0 of the login is input, what is read from those of 1 and 2 is output.
//!
//! Ends are found three times, so that neither an eager client nor a server without a program of its own gets past: when a
//! process in scope that has not executed anything makes a pipe (sshd, before it forks), when such a process puts a descriptor in
//! place 0 to 2 (internal-sftp does no more than that), and when it executes its first program.

use aya_ebpf::{helpers::bpf_probe_read_user, macros::map, maps::LruHashMap};
use breakglass_abi::{
    Kind, StdioEnd, StdioKey,
    settings::{NO_STREAM, Site},
};

use crate::{
    chunk::{self, Copy, Source},
    descriptor::{self, FIFO, SOCKET, TYPE_MASK},
    fault,
    task::{Identity, Task, offset, peek},
};

/// Most ends at a time. A login has three, and idle ones go first; sshd allows ten logins in a connection.
const ENDS_MAX: u32 = 4096;
/// `AF_UNIX` (include/linux/socket.h).
const AF_UNIX: u16 = 1;

#[map]
static STDIO: LruHashMap<StdioKey, StdioEnd> = LruHashMap::with_max_entries(ENDS_MAX, 0);

/// Takes the descriptors 0 to 2 of a login's first program.
#[inline(always)]
pub fn take_descriptors(task: Task, who: Identity, slot: u32) {
    take(task, who, slot, 0);
    take(task, who, slot, 1);
    take(task, who, slot, 2);
}

/// Takes one of them, if it is a pipe or one of a pair of sockets.
#[inline(always)]
pub fn take(task: Task, who: Identity, slot: u32, stream: u32) -> Option<()> {
    let file = descriptor::file(task, u64::from(stream), Site::ReadStdio)?;
    let (inode, mode) = descriptor::inode(file, Site::ReadStdio)?;
    let (reads, writes) = if stream == 0 { (NO_STREAM, 0) } else { (stream, NO_STREAM) };
    let end = StdioEnd { start_ns: who.start_ns, tgid: who.tgid, slot, reads, writes };
    match mode & TYPE_MASK {
        FIFO => store(inode, end, false),
        SOCKET => store(far_end(file)?, end, true),
        _ => None,
    }
}

/// Takes a pipe that sshd has just made: what is written to it before its child has put it in place is the child's input.
#[inline(always)]
pub fn take_pipe(task: Task, who: Identity, slot: u32, descriptors: u64) -> Option<()> {
    let pair = match unsafe { bpf_probe_read_user(descriptors as *const [u32; 2]) } {
        Ok(pair) => pair,
        Err(error) => {
            fault::count(Site::ReadStdio, i64::from(error));
            return None;
        }
    };
    let file = descriptor::file(task, u64::from(pair[0]), Site::ReadStdio)?;
    let (inode, _) = descriptor::inode(file, Site::ReadStdio)?;
    let end = StdioEnd { start_ns: who.start_ns, tgid: who.tgid, slot, reads: NO_STREAM, writes: 0 };
    store(inode, end, false)
}

/// Remembers an end. A pair of sockets carries both directions; and where one pipe is both 1 and 2, it stays 1.
#[inline(always)]
fn store(inode: u64, mut end: StdioEnd, both_ways: bool) -> Option<()> {
    let key = key_of(inode)?;
    if let Some(known) = unsafe { STDIO.get(&key) }
        && known.tgid == end.tgid
        && known.start_ns == end.start_ns
    {
        if end.reads == NO_STREAM || known.reads == 1 {
            end.reads = if both_ways || end.reads != NO_STREAM { known.reads } else { NO_STREAM };
        }
        if both_ways && end.writes == NO_STREAM {
            end.writes = known.writes;
        }
    }
    if let Err(error) = STDIO.insert(&key, &end, 0) {
        fault::count(Site::StdioInsert, i64::from(error));
    }
    Some(())
}

#[inline(always)]
fn key_of(inode: u64) -> Option<StdioKey> {
    let (dev, number) = descriptor::place(inode, Site::ReadStdio)?;
    Some(StdioKey { dev, reserved: 0, inode: number })
}

/// The inode of the other one of a pair of sockets.
#[inline(always)]
fn far_end(file: u64) -> Option<u64> {
    let socket: u64 = peek(file, offset!(file_private), Site::ReadStdio)?;
    let sock: u64 = peek(socket, offset!(socket_sk), Site::ReadStdio)?;
    let family: u16 = peek(sock, offset!(sock_family), Site::ReadStdio)?;
    if family != AF_UNIX {
        return None;
    }
    let peer: u64 = peek(sock, offset!(unix_peer), Site::ReadStdio)?;
    if peer == 0 {
        return None;
    }
    let socket: u64 = peek(peer, offset!(sock_socket), Site::ReadStdio)?;
    // `struct socket_alloc` begins with the socket.
    if socket == 0 { None } else { Some(socket + offset!(socket_inode) as u64) }
}

/// At the exit of a read or write on a pipe or socket: sends what it moved, if it was at an end.
#[inline(always)]
pub fn moved(task: Task, inode: u64, write: bool, source: Source, address: u64, total: u64) -> Option<()> {
    let key = key_of(inode)?;
    let end = unsafe { STDIO.get(&key) }?;
    let stream = if write { end.writes } else { end.reads };
    if stream == NO_STREAM {
        return None;
    }
    let copy = Copy {
        source,
        address,
        total,
        kind: if write { Kind::StdioInput } else { Kind::StdioOutput },
        slot: end.slot,
        who: task.identity(),
        part: stream as u16,
        terminal: end.start_ns,
        index: end.tgid,
        rows: 0,
        cols: 0,
        site: Site::ReadStdio,
    };
    chunk::send_from_trace(&copy);
    Some(())
}
