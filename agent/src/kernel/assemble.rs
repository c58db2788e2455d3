//! From kernel records to events.
//!
//! One record is one event, except that an exec with long arguments is several: chunks, then the [`Exec`] record that closes
//! the set. All of a set come from one CPU, and no other exec of that CPU lies between them.

use std::collections::BTreeMap;

use breakglass_abi::{
    Chunk, Exec, ExecFailed, Exit, Fork, Header, Kind, Ring, Withheld,
    record::{
        FAULT_ARGV, FAULT_ENV, FLAG_CROWDED, FLAG_KILLED, FLAG_UNTAGGED, PART_ARGV, PART_CHUNKS, PART_ENV,
        WALK_PARTIAL, WALK_PASSED_ROOT, WALK_ROOT,
    },
};
use breakglass_api::v1::{self, ExecFault, KernelRef, event::Body};

use super::{actions, refusals};
use crate::recorder::source::Observed;

/// Most bytes of arguments or environment that are put together; the kernel takes 6 MiB of both (fs/exec.c, `bprm_stack_limits`).
const AREA_MAX: usize = 8 << 20;

/// Environment that goes into the record: what changes how a program runs, or says how the session came about.
const ENV_NAMES: [&[u8]; 3] = [b"TERM", b"BASH_ENV", b"ENV"];
const ENV_PREFIXES: [&[u8]; 5] = [b"LD_", b"SSH_", b"SUDO_", b"PYTHON", b"PERL5"];

/// A record that cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable;

/// An exec of which only chunks are there yet.
struct Partial {
    first: Header,
    last_seq: u64,
    argv: Area,
    env: Area,
}

#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
    /// How much of the whole the chunks stood for.
    covered: u64,
    total: u64,
    /// Chunks are missing, or did not hold what they stood for.
    unread: bool,
    lost: bool,
}

/// Puts records together.
#[derive(Default)]
pub struct Assembler {
    /// By CPU.
    partial: BTreeMap<u32, Partial>,
}

impl Assembler {
    /// Whether an exec is half read.
    pub fn is_open(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes one record, front and all. What it completes is appended to `out`; folding looks back no further than `from`.
    pub fn take(&mut self, ring: Ring, bytes: &[u8], out: &mut Vec<Observed>, from: usize) -> Result<(), Unreadable> {
        let header = Header::parse(bytes).ok_or(Unreadable)?;
        let kind = Kind::from_number(header.kind).ok_or(Unreadable)?;
        if ring == Ring::Audit && !matches!(kind, Kind::ExecPart | Kind::Exec | Kind::Refused) {
            // Other programs do not interrupt an exec's records on their CPU: its end is lost.
            out.extend(self.partial.remove(&header.cpu).map(incomplete));
        }
        match kind {
            Kind::ExecPart => return self.take_part(bytes, out),
            Kind::Exec => {
                let event = self.take_exec(ring, bytes, out)?;
                out.push(event);
            }
            Kind::ExecFailed => {
                let event = exec_failed(bytes)?;
                if !fold(out.get_mut(from..).and_then(<[Observed]>::last_mut), &event) {
                    out.push(event);
                }
            }
            Kind::Fork => out.push(fork(bytes)?),
            Kind::Exit => out.push(exit(bytes)?),
            Kind::TerminalOutput => out.push(terminal(ring, bytes, output)?),
            Kind::TerminalInput => out.push(terminal(ring, bytes, input)?),
            Kind::TerminalWithheld => out.push(withheld(ring, bytes)?),
            Kind::StdioOutput => out.push(terminal(ring, bytes, stdio_output)?),
            Kind::StdioInput => out.push(terminal(ring, bytes, stdio_input)?),
            Kind::Refused => out.push(refusals::event(ring, bytes)?),
            action => out.push(actions::event(ring, action, bytes)?),
        }
        if header.flags & FLAG_UNTAGGED != 0 {
            out.push(untagged(&header));
        }
        if header.flags & FLAG_CROWDED != 0 {
            out.push(crowded(&header));
        }
        Ok(())
    }

    /// Gives up on what is half read: it becomes events that say what they lack.
    pub fn flush(&mut self, out: &mut Vec<Observed>) {
        while let Some((_, partial)) = self.partial.pop_first() {
            out.push(incomplete(partial));
        }
    }

    fn take_part(&mut self, bytes: &[u8], out: &mut Vec<Observed>) -> Result<(), Unreadable> {
        let chunk = Chunk::parse(bytes).ok_or(Unreadable)?;
        let data = tail(bytes, Chunk::SIZE, chunk.data_len as usize)?;
        let cpu = chunk.header.cpu;
        if self.partial.get(&cpu).is_some_and(|partial| !same_task(&partial.first, &chunk.header))
            && let Some(other) = self.partial.remove(&cpu)
        {
            out.push(incomplete(other));
        }
        let partial = self.partial.entry(cpu).or_insert_with(|| Partial {
            first: chunk.header,
            last_seq: chunk.header.seq,
            argv: Area::default(),
            env: Area::default(),
        });
        partial.last_seq = chunk.header.seq;
        match chunk.part {
            PART_ARGV => partial.argv.add(&chunk, data),
            PART_ENV => partial.env.add(&chunk, data),
            _ => return Err(Unreadable),
        }
        Ok(())
    }

    fn take_exec(&mut self, ring: Ring, bytes: &[u8], out: &mut Vec<Observed>) -> Result<Observed, Unreadable> {
        let exec = Exec::parse(bytes).ok_or(Unreadable)?;
        let mut rest = bytes.get(Exec::SIZE..).ok_or(Unreadable)?;
        let mut piece = |len: usize| -> Result<&[u8], Unreadable> {
            let (piece, after) = rest.split_at_checked(len).ok_or(Unreadable)?;
            rest = after;
            Ok(piece)
        };
        let path = piece(exec.path_len.into())?;
        let cwd = piece(exec.cwd_len.into())?;
        let filename = piece(exec.filename_len.into())?;
        let interp = piece(exec.interp_len.into())?;
        let argv_inline = piece(exec.argv_len as usize)?;
        let env_inline = piece(exec.env_len as usize)?;

        // Programs outside the session come without chunks.
        let mut partial = if ring == Ring::Audit { self.partial.remove(&exec.header.cpu) } else { None };
        if partial.as_ref().is_some_and(|partial| !same_task(&partial.first, &exec.header)) {
            out.extend(partial.take().map(incomplete));
        }
        let first_seq = partial.as_ref().map_or(exec.header.seq, |partial| partial.first.seq);
        let (argv_chunks, env_chunks) = partial.map(|partial| (partial.argv, partial.env)).unwrap_or_default();
        let mut faults = exec.faults | path_faults(exec.walks & 0xffff) | path_faults(exec.walks >> 16);
        let argv = area(exec.parts & 0xffff, argv_inline, argv_chunks, exec.argv_bytes, FAULT_ARGV, &mut faults);
        let env = area(exec.parts >> 16, env_inline, env_chunks, exec.env_bytes, FAULT_ENV, &mut faults);

        let exe = path_of(path, exec.walks & 0xffff);
        let filename = until_nul(filename);
        let body = v1::Exec {
            process: Some(process(&exec.header)),
            parent: Some(v1::Process { pid: exec.parent_tgid, start_ns: exec.parent_start_ns }),
            filename: if filename == exe { Vec::new() } else { filename.to_vec() },
            exe,
            interpreter: until_nul(interp).to_vec(),
            cwd: path_of(cwd, exec.walks >> 16),
            argv: strings(&argv).map(<[u8]>::to_vec).collect(),
            env: strings(&env).filter(|entry| selected(entry)).map(<[u8]>::to_vec).collect(),
            credentials: Some(credentials(&exec)),
            file: Some(v1::File {
                dev: exec.dev,
                inode: exec.inode,
                links: exec.links,
                mode: exec.mode,
                anonymous: exec.links == 0,
            }),
            namespaces: Some(v1::Namespaces {
                pid: exec.pid_ns,
                mount: exec.mount_ns,
                user: exec.user_ns,
                net: exec.net_ns,
                cgroup_id: exec.cgroup_id,
            }),
            tty: exec.tty,
            terminal: exec.terminal,
            comm: until_nul(&exec.comm).to_vec(),
            argv_bytes: exec.argv_bytes,
            env_bytes: exec.env_bytes,
            faults,
            link: None,
            killed: exec.header.flags & FLAG_KILLED != 0,
        };
        let mut event = observed(ring, &exec.header, Body::Exec(body));
        set_range(&mut event, first_seq, exec.header.seq);
        Ok(event)
    }
}

impl Area {
    fn add(&mut self, chunk: &Chunk, data: &[u8]) {
        self.total = chunk.total;
        self.lost |= chunk.offset != self.covered || self.bytes.len() + data.len() > AREA_MAX;
        self.unread |= chunk.span != data.len() as u64;
        self.covered = chunk.offset.saturating_add(chunk.span);
        if self.bytes.len() + data.len() <= AREA_MAX {
            self.bytes.extend_from_slice(data);
        }
    }
}

/// The arguments or environment, from wherever they came, and what is wrong with them.
fn area<'a>(
    how: u32,
    inline: &'a [u8],
    chunks: Area,
    total: u64,
    fault: u32,
    faults: &mut u32,
) -> std::borrow::Cow<'a, [u8]> {
    if how != PART_CHUNKS {
        return inline.into();
    }
    if chunks.unread {
        *faults |= fault;
    }
    if chunks.lost || chunks.covered != total {
        *faults |= ExecFault::LostRecord as u32;
    }
    chunks.bytes.into()
}

/// An exec whose closing record is missing.
fn incomplete(partial: Partial) -> Observed {
    let mut faults = ExecFault::LostRecord as u32;
    for (area, fault) in [(&partial.argv, FAULT_ARGV), (&partial.env, FAULT_ENV)] {
        if area.unread {
            faults |= fault;
        }
    }
    let body = v1::Exec {
        process: Some(process(&partial.first)),
        argv: strings(&partial.argv.bytes).map(<[u8]>::to_vec).collect(),
        env: strings(&partial.env.bytes).filter(|entry| selected(entry)).map(<[u8]>::to_vec).collect(),
        argv_bytes: partial.argv.total,
        env_bytes: partial.env.total,
        faults,
        ..v1::Exec::default()
    };
    let mut event = observed(Ring::Audit, &partial.first, Body::Exec(body));
    set_range(&mut event, partial.first.seq, partial.last_seq);
    event
}

fn exec_failed(bytes: &[u8]) -> Result<Observed, Unreadable> {
    let failed = ExecFailed::parse(bytes).ok_or(Unreadable)?;
    let name = tail(bytes, ExecFailed::SIZE, failed.name_len as usize)?;
    let body = v1::ExecFailed {
        process: Some(process(&failed.header)),
        filename: until_nul(name).to_vec(),
        errno: failed.errno,
        count: 1,
        uid: failed.uid,
    };
    Ok(observed(Ring::Audit, &failed.header, Body::ExecFailed(body)))
}

/// A shell that looks for a program along PATH fails once for each folder. Folds `new` into `last` if it is the same refusal of
/// the same program's name by the same process, and the very next record of its CPU.
fn fold(last: Option<&mut Observed>, new: &Observed) -> bool {
    let Some(last) = last else { return false };
    let (Some(Body::ExecFailed(known)), Some(Body::ExecFailed(repeat))) = (&mut last.event.body, &new.event.body)
    else {
        return false;
    };
    let (Some(origin), Some(next)) = (&mut last.event.origin, &new.event.origin) else { return false };
    let follows = origin.ring == next.ring
        && origin.cpu == next.cpu
        && origin.seq + u64::from(origin.more) + 1 == next.seq
        && last.slot == new.slot;
    let same = known.process == repeat.process
        && known.errno == repeat.errno
        && base_name(&known.filename) == base_name(&repeat.filename);
    if follows && same {
        origin.more += 1;
        known.count += 1;
    }
    follows && same
}

fn fork(bytes: &[u8]) -> Result<Observed, Unreadable> {
    let fork = Fork::parse(bytes).ok_or(Unreadable)?;
    let body = v1::Fork {
        process: Some(process(&fork.header)),
        child: Some(v1::Process { pid: fork.child_tgid, start_ns: fork.child_start_ns }),
    };
    Ok(observed(Ring::Audit, &fork.header, Body::Fork(body)))
}

fn exit(bytes: &[u8]) -> Result<Observed, Unreadable> {
    let exit = Exit::parse(bytes).ok_or(Unreadable)?;
    let body = v1::Exit {
        process: Some(process(&exit.header)),
        status: (exit.code >> 8) & 0xff,
        signal: exit.code & 0x7f,
        core_dumped: exit.code & 0x80 != 0,
    };
    Ok(observed(Ring::Audit, &exit.header, Body::Exit(body)))
}

fn terminal(ring: Ring, bytes: &[u8], body: fn(&Chunk, &[u8]) -> Body) -> Result<Observed, Unreadable> {
    let chunk = Chunk::parse(bytes).ok_or(Unreadable)?;
    let data = tail(bytes, Chunk::SIZE, chunk.data_len as usize)?;
    Ok(observed(ring, &chunk.header, body(&chunk, data)))
}

fn output(chunk: &Chunk, data: &[u8]) -> Body {
    Body::TerminalOutput(v1::TerminalOutput {
        terminal: chunk.terminal,
        index: chunk.index,
        data: data.to_vec(),
        rows: chunk.rows.into(),
        cols: chunk.cols.into(),
        by: Some(process(&chunk.header)),
        missing: chunk.span.saturating_sub(data.len() as u64),
    })
}

fn input(chunk: &Chunk, data: &[u8]) -> Body {
    Body::TerminalInput(v1::TerminalInput {
        terminal: chunk.terminal,
        index: chunk.index,
        data: data.to_vec(),
        by: Some(process(&chunk.header)),
        missing: chunk.span.saturating_sub(data.len() as u64),
    })
}

fn stdio_output(chunk: &Chunk, data: &[u8]) -> Body {
    stdio(chunk, data, v1::stdio_data::Direction::Output)
}

fn stdio_input(chunk: &Chunk, data: &[u8]) -> Body {
    stdio(chunk, data, v1::stdio_data::Direction::Input)
}

fn stdio(chunk: &Chunk, data: &[u8], direction: v1::stdio_data::Direction) -> Body {
    Body::StdioData(v1::StdioData {
        direction: direction.into(),
        stream: chunk.part.into(),
        data: data.to_vec(),
        missing: chunk.span.saturating_sub(data.len() as u64),
        by: Some(process(&chunk.header)),
        login: Some(v1::Process { pid: chunk.index, start_ns: chunk.terminal }),
    })
}

fn withheld(ring: Ring, bytes: &[u8]) -> Result<Observed, Unreadable> {
    let withheld = Withheld::parse(bytes).ok_or(Unreadable)?;
    let body = v1::InputWithheld {
        terminal: withheld.terminal,
        index: withheld.index,
        bytes: withheld.bytes,
        by: Some(process(&withheld.header)),
    };
    Ok(observed(ring, &withheld.header, Body::InputWithheld(body)))
}

/// The table of tags is full: what this process starts may go unseen.
fn untagged(header: &Header) -> Observed {
    let message =
        format!("process {} or its new child could not be tagged: the table of tagged processes is full", header.tgid);
    alert(header, "process-not-followed", message)
}

/// It is almost full, and everything is still followed.
fn crowded(header: &Header) -> Observed {
    let message = format!(
        "process {} was killed for starting another one: the sessions of this host have so many that the next ones could not be followed",
        header.tgid
    );
    alert(header, "too-many-processes", message)
}

fn alert(header: &Header, code: &str, message: String) -> Observed {
    let alert = v1::Alert { code: code.into(), message, process: Some(process(header)) };
    let event = v1::Event { boot_ns: header.boot_ns, session: 0, origin: None, body: Some(Body::Alert(alert)) };
    Observed { slot: header.slot, event }
}

/// How the wire names a ring.
pub fn wire_ring(ring: Ring) -> v1::Ring {
    match ring {
        Ring::Audit => v1::Ring::Audit,
        Ring::Witness => v1::Ring::Witness,
        Ring::Bulk => v1::Ring::Bulk,
    }
}

pub(super) fn observed(ring: Ring, header: &Header, body: Body) -> Observed {
    let origin = KernelRef { ring: wire_ring(ring).into(), cpu: header.cpu, seq: header.seq, more: 0 };
    let event = v1::Event { boot_ns: header.boot_ns, session: 0, origin: Some(origin), body: Some(body) };
    Observed { slot: header.slot, event }
}

fn set_range(event: &mut Observed, first: u64, last: u64) {
    if let Some(origin) = &mut event.event.origin {
        origin.seq = first;
        origin.more = u32::try_from(last.saturating_sub(first)).unwrap_or(u32::MAX);
    }
}

pub(super) fn process(header: &Header) -> v1::Process {
    v1::Process { pid: header.tgid, start_ns: header.start_ns }
}

fn credentials(exec: &Exec) -> v1::Credentials {
    v1::Credentials {
        uid: exec.uid,
        gid: exec.gid,
        euid: exec.euid,
        egid: exec.egid,
        suid: exec.suid,
        sgid: exec.sgid,
        loginuid: exec.loginuid,
        audit_session: exec.audit_session,
        cap_effective: exec.cap_effective,
    }
}

fn same_task(a: &Header, b: &Header) -> bool {
    (a.tgid, a.tid, a.start_ns) == (b.tgid, b.tid, b.start_ns)
}

pub(super) fn tail(bytes: &[u8], from: usize, len: usize) -> Result<&[u8], Unreadable> {
    bytes.get(from..).and_then(|rest| rest.get(..len)).ok_or(Unreadable)
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The strings of an area: each ends in a NUL; a last one without it counts too.
fn strings(area: &[u8]) -> impl Iterator<Item = &[u8]> {
    area.split_inclusive(|byte| *byte == 0).map(|piece| piece.strip_suffix(&[0]).unwrap_or(piece))
}

fn selected(entry: &[u8]) -> bool {
    let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
    ENV_NAMES.contains(&name) || ENV_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// A path from its components, deepest first, each with a NUL behind it.
pub(super) fn path_of(components: &[u8], walk: u32) -> Vec<u8> {
    let mut path = Vec::with_capacity(components.len() + 1);
    let parts: Vec<&[u8]> = strings(components).collect();
    for (depth, part) in parts.iter().rev().enumerate() {
        let detached_root = depth == 0 && walk & WALK_ROOT == 0;
        if !detached_root && path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.is_empty() && walk & WALK_ROOT != 0 {
        path.push(b'/');
    }
    path
}

fn path_faults(walk: u32) -> u32 {
    let outside = walk & WALK_ROOT != 0 && walk & WALK_PASSED_ROOT == 0;
    if walk & WALK_PARTIAL != 0 || outside { ExecFault::PathPartial as u32 } else { 0 }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
