use super::*;
use breakglass_abi::record::{FAULT_CWD, PART_INLINE, WALK_UNMOUNTED};
use proptest::prelude::*;

const REACHED: u32 = WALK_ROOT | WALK_PASSED_ROOT;

fn header(kind: Kind, len: usize, seq: u64) -> Header {
    Header {
        len: len as u32,
        kind: kind as u16,
        flags: 0,
        cpu: 1,
        slot: 7,
        seq,
        boot_ns: 1_000 + seq,
        tgid: 42,
        tid: 42,
        start_ns: 9,
    }
}

fn exec(seq: u64) -> Exec {
    Exec {
        header: header(Kind::Exec, Exec::SIZE, seq),
        parent_start_ns: 1,
        argv_bytes: 0,
        env_bytes: 0,
        cap_effective: 0,
        inode: 5,
        cgroup_id: 6,
        terminal: 0,
        parent_tgid: 1,
        uid: 1000,
        gid: 1000,
        suid: 1000,
        sgid: 1000,
        euid: 0,
        egid: 0,
        loginuid: 1000,
        audit_session: 2,
        dev: 8 << 20 | 1,
        links: 1,
        mode: 0o100_755,
        pid_ns: 1,
        mount_ns: 2,
        user_ns: 3,
        net_ns: 4,
        tty: 0,
        faults: 0,
        walks: REACHED | REACHED << 16,
        parts: PART_INLINE | PART_INLINE << 16,
        path_len: 0,
        cwd_len: 0,
        filename_len: 0,
        interp_len: 0,
        comm: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        argv_len: 0,
        env_len: 0,
    }
}

/// A whole record with its tail.
fn exec_record(mut exec: Exec, [path, cwd, filename, interp, argv, env]: [&[u8]; 6]) -> Vec<u8> {
    exec.path_len = path.len() as u16;
    exec.cwd_len = cwd.len() as u16;
    exec.filename_len = filename.len() as u16;
    exec.interp_len = interp.len() as u16;
    exec.argv_len = argv.len() as u32;
    exec.env_len = env.len() as u32;
    exec.argv_bytes = exec.argv_bytes.max(argv.len() as u64);
    let mut bytes = exec.to_bytes().to_vec();
    for part in [path, cwd, filename, interp, argv, env] {
        bytes.extend_from_slice(part);
    }
    bytes
}

fn chunk_record(kind: Kind, seq: u64, part: u16, offset: u64, total: u64, data: &[u8]) -> Vec<u8> {
    let chunk = Chunk {
        header: header(kind, Chunk::SIZE + data.len(), seq),
        offset,
        total,
        span: data.len() as u64,
        terminal: 3,
        index: 4,
        rows: 24,
        cols: 80,
        part,
        error: 0,
        data_len: data.len() as u32,
    };
    let mut bytes = chunk.to_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

fn failed_record(seq: u64, name: &[u8]) -> Vec<u8> {
    let failed = ExecFailed {
        header: header(Kind::ExecFailed, ExecFailed::SIZE + name.len(), seq),
        errno: 2,
        uid: 1000,
        name_len: name.len() as u32,
        reserved: 0,
    };
    let mut bytes = failed.to_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes
}

fn assemble(records: &[Vec<u8>]) -> (Assembler, Vec<Observed>) {
    let (mut assembler, mut out) = (Assembler::default(), Vec::new());
    for record in records {
        assembler.take(Ring::Audit, record, &mut out, 0).unwrap();
    }
    (assembler, out)
}

fn as_exec(observed: &Observed) -> &v1::Exec {
    match &observed.event.body {
        Some(Body::Exec(exec)) => exec,
        other => panic!("no exec: {other:?}"),
    }
}

#[test]
fn an_exec_in_one_record() {
    let tail: [&[u8]; 6] =
        [b"ls\0bin\0usr\0", b"", b"/bin/ls\0", b"", b"ls\0\0-l\0", b"A=1\0LD_PRELOAD=x\0TERM=t\0TERMX=1\0"];
    let (assembler, out) = assemble(&[exec_record(exec(5), tail)]);
    assert!(!assembler.is_open());
    let [observed] = &out[..] else { panic!("{out:?}") };
    assert_eq!(observed.slot, 7);
    assert_eq!(observed.event.origin, Some(KernelRef { ring: 0, cpu: 1, seq: 5, more: 0 }));
    let exec = as_exec(observed);
    assert_eq!(exec.exe, b"/usr/bin/ls");
    assert_eq!(exec.cwd, b"/");
    assert_eq!(exec.filename, b"/bin/ls");
    assert_eq!(exec.argv, [&b"ls"[..], b"", b"-l"]);
    assert_eq!(exec.env, [&b"LD_PRELOAD=x"[..], b"TERM=t"]);
    assert_eq!(exec.comm, b"sh");
    assert_eq!(exec.faults, 0);
}

#[test]
fn a_name_that_says_nothing_new_is_left_out() {
    let (_, out) = assemble(&[exec_record(exec(1), [b"ls\0bin\0", b"", b"/bin/ls\0", b"", b"", b""])]);
    assert_eq!(as_exec(&out[0]).filename, b"");
}

#[test]
fn paths_say_where_the_walk_ended() {
    let outside = Exec { walks: WALK_ROOT | REACHED << 16, ..exec(1) };
    let memfd = Exec { walks: WALK_UNMOUNTED | REACHED << 16, links: 0, ..exec(2) };
    let broken = Exec { walks: WALK_PARTIAL, faults: FAULT_CWD, ..exec(3) };
    let tail: [&[u8]; 6] = [b"memfd:x\0", b"", b"", b"", b"", b""];
    let (_, out) = assemble(&[exec_record(outside, tail), exec_record(memfd, tail), exec_record(broken, tail)]);
    assert_eq!(as_exec(&out[0]).faults, ExecFault::PathPartial as u32);
    assert_eq!(as_exec(&out[1]).exe, b"memfd:x");
    assert!(as_exec(&out[1]).file.unwrap().anonymous);
    assert_eq!(as_exec(&out[1]).faults, 0);
    assert_eq!(as_exec(&out[2]).faults, ExecFault::PathPartial as u32 | FAULT_CWD);
}

#[test]
fn chunks_and_the_record_that_closes_them_are_one_event() {
    let closing = Exec { parts: PART_CHUNKS | PART_INLINE << 16, argv_bytes: 8, ..exec(12) };
    let records = [
        chunk_record(Kind::ExecPart, 10, PART_ARGV, 0, 8, b"abc\0"),
        chunk_record(Kind::ExecPart, 11, PART_ARGV, 4, 8, b"def\0"),
        exec_record(closing, [b"", b"", b"", b"", b"", b""]),
    ];
    let (assembler, out) = assemble(&records);
    assert!(!assembler.is_open());
    assert_eq!(as_exec(&out[0]).argv, [b"abc", b"def"]);
    assert_eq!(as_exec(&out[0]).faults, 0);
    assert_eq!(out[0].event.origin, Some(KernelRef { ring: 0, cpu: 1, seq: 10, more: 2 }));
}

#[test]
fn a_lost_chunk_is_named() {
    let closing = Exec { parts: PART_CHUNKS | PART_INLINE << 16, argv_bytes: 8, ..exec(12) };
    let end = exec_record(closing, [b"", b"", b"", b"", b"", b""]);
    for lost in 0..2 {
        let mut records = vec![
            chunk_record(Kind::ExecPart, 10, PART_ARGV, 0, 8, b"abc\0"),
            chunk_record(Kind::ExecPart, 11, PART_ARGV, 4, 8, b"def\0"),
        ];
        records.remove(lost);
        records.push(end.clone());
        let (_, out) = assemble(&records);
        assert_eq!(as_exec(&out[0]).faults, ExecFault::LostRecord as u32, "{lost}");
        assert_eq!(as_exec(&out[0]).argv.len(), 1);
    }
}

#[test]
fn a_lost_end_gives_what_is_there() {
    let (mut assembler, mut out) = assemble(&[chunk_record(Kind::ExecPart, 10, PART_ARGV, 0, 8, b"abc\0")]);
    assert!(assembler.is_open() && out.is_empty());
    assembler.flush(&mut out);
    assert!(!assembler.is_open());
    assert_eq!(as_exec(&out[0]).argv, [b"abc"]);
    assert_eq!(as_exec(&out[0]).faults, ExecFault::LostRecord as u32);
    assert_eq!(as_exec(&out[0]).process.unwrap().pid, 42);
}

#[test]
fn whatever_a_cpu_sends_next_ends_its_half_exec() {
    let (assembler, out) =
        assemble(&[chunk_record(Kind::ExecPart, 10, PART_ARGV, 0, 8, b"abc\0"), failed_record(12, b"/bin/x\0")]);
    assert!(!assembler.is_open());
    assert_eq!(out.len(), 2);
    assert_eq!(as_exec(&out[0]).faults, ExecFault::LostRecord as u32);
}

#[test]
fn a_search_along_the_path_is_one_event() {
    let records = [
        failed_record(1, b"/usr/bin/x\0"),
        failed_record(2, b"/bin/x\0"),
        failed_record(4, b"/sbin/x\0"),
        failed_record(5, b"/sbin/y\0"),
    ];
    let (_, out) = assemble(&records);
    let counts: Vec<u32> = out
        .iter()
        .map(|observed| match &observed.event.body {
            Some(Body::ExecFailed(failed)) => failed.count,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [2, 1, 1]);
    assert_eq!(out[0].event.origin.unwrap().more, 1);
}

#[test]
fn terminal_bytes_that_are_missing_are_counted() {
    let mut chunk = Chunk::parse(&chunk_record(Kind::TerminalOutput, 1, 0, 0, 10, b"abc")).unwrap();
    chunk.span = 10;
    let mut bytes = chunk.to_bytes().to_vec();
    bytes.extend_from_slice(b"abc");
    let mut out = Vec::new();
    Assembler::default().take(Ring::Bulk, &bytes, &mut out, 0).unwrap();
    match &out[0].event.body {
        Some(Body::TerminalOutput(output)) => {
            assert_eq!((&output.data[..], output.missing, output.rows), (&b"abc"[..], 7, 24))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(out[0].event.origin.unwrap().ring, v1::Ring::Bulk as i32);
}

#[test]
fn a_task_that_could_not_be_tagged_is_an_alert() {
    let mut exec = exec(1);
    exec.header.flags = FLAG_UNTAGGED;
    let (_, out) = assemble(&[exec_record(exec, [b"", b"", b"", b"", b"", b""])]);
    assert!(matches!(&out[1].event.body, Some(Body::Alert(alert)) if alert.code == "process-not-followed"));
}

#[test]
fn a_task_that_was_killed_for_one_child_too_many_is_an_alert() {
    let fork = |flags| {
        let header = Header { flags, ..header(Kind::Fork, Fork::SIZE, 1) };
        let fork = Fork { header, child_start_ns: 9, child_tgid: 8, reserved: 0 };
        let (_, out) = assemble(&[fork.to_bytes().to_vec()]);
        out.into_iter().skip(1).map(|observed| observed.event.body).collect::<Vec<_>>()
    };
    let alerts = fork(FLAG_KILLED | FLAG_CROWDED);
    assert!(matches!(&alerts[..], [Some(Body::Alert(alert))] if alert.code == "too-many-processes"), "{alerts:?}");
    assert_eq!(fork(FLAG_KILLED), [], "as when a session closes");
}

proptest! {
    #[test]
    fn noise_and_cut_records_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        kind in prop::sample::select(vec![10u16, 11, 12, 20, 21, 40, 41, 42, 99]),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        let mut record = bytes;
        if record.len() >= 6 {
            record[4..6].copy_from_slice(&kind.to_le_bytes());
        }
        let _ = assembler.take(Ring::Audit, &record, &mut out, 0);
        let whole = exec_record(exec(1), [b"ls\0", b"", b"ls\0", b"", b"a\0b\0", b""]);
        let len = cut.index(whole.len());
        prop_assert_eq!(assembler.take(Ring::Audit, &whole[..len], &mut out, 0), Err(Unreadable));
        assembler.flush(&mut out);
    }
}
