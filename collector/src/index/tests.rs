//! Hostile frames, interruptions, and that neither changes what comes out.

use breakglass_api::checkpoint::{Kind, Statement};
use breakglass_api::frame::{Frame, HASH_LEN, Header, RUN_FRAME_MAX, Sealer, seal_raw};
use breakglass_api::v1::event::Body;
use breakglass_api::v1::left_behind::{Change, Severity};
use breakglass_api::v1::{
    Alert, Batch, Checkpoint, Event, Exec, ExecFailed, Exit, Gap, InputWithheld, KernelRef, KeyEvolved, KeyIntroduced,
    LeftBehind, Process, Ring, SessionClosed, SessionExtended, SessionOpened, SessionResumed, SignedStatement,
    TerminalInput, TerminalOutput,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::store::{HostRecord, NewFrame};

mod bounds;

/// A store with one host and its frames.
struct Rig {
    dir: tempfile::TempDir,
    store: Store,
    host: i64,
    header: Header,
    sealer: Sealer,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("frames.db")).await.unwrap();
        let host = HostRecord {
            host_id: "h".into(),
            hostname: "web1".into(),
            tier: "basic".into(),
            agent_version: "0".into(),
            last_seen_ns: 1,
        };
        let host = store.greet(&host).await.unwrap();
        let header = Header {
            stream_id: [1; 16],
            boot_id: [2; 16],
            seq: 0,
            prev: [0; 32],
            first_boot_ns: 0,
            last_boot_ns: 0,
            wall_offset_ns: 0,
            events: 0,
        };
        Self { dir, store, host, header, sealer: Sealer::new(1).unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("index.db")
    }

    async fn add(&mut self, batch: &Batch) -> i64 {
        self.header.seq += 1;
        let sealed = self.sealer.seal(self.header, &mut batch.clone(), u64::MAX).unwrap();
        self.store_frame(sealed.bytes).await
    }

    async fn store_frame(&mut self, bytes: Vec<u8>) -> i64 {
        let frame = Frame::parse(&bytes).unwrap();
        self.header.prev = frame.hash;
        let new = NewFrame {
            host: self.host,
            stream_id: frame.header.stream_id,
            seq: frame.header.seq,
            hash: frame.hash,
            events: frame.header.events,
            missing_before: 0,
            received_ns: 1,
            bytes: bytes.into(),
        };
        self.store.append(&[new]).await.unwrap()
    }

    /// Every row of the index but the transcripts under way, as text.
    async fn rows(&self) -> String {
        let indexer = Indexer::open(self.store.clone(), &self.path()).await.unwrap();
        let mut told = String::new();
        let tables = [
            "SELECT json_array(host, frames, events, hex(open_session)) FROM hosts",
            "SELECT json_array(id, hex(uuid), operator, hex(opened), opened_ns, deadline_ns, hex(closed), closed_ns, closed_arrival, joined, commands, execs,
             failed_commands, terminals, terminal_bytes, input_bytes, withheld_bytes, events, gaps, alerts, witnessed,
             hex(left_behind), changes, doors, first_arrival, last_arrival, first_line, last_line) FROM sessions",
            "SELECT json_array(id, pid, start_ns, wall_ns, arrival, place, failed, hex(event), hex(exit), exit_wall_ns,
             replaced_by) FROM commands",
            "SELECT json_array(id, session, terminal, number, output_bytes, input_bytes, first_ns, last_ns) FROM terminals",
            "SELECT json_array(id, kind, session, subject, wall_ns, text) FROM lines",
            "SELECT json_array(terminal, place, kind, wall_ns, text) FROM current_lines",
            "SELECT json_array(host, hex(host_key), epoch, hex(signing_key)) FROM hosts",
            "SELECT json_array(id, host, epoch, link, seq, carrier, arrival, mark, hex(signed)) FROM statements",
            "SELECT json_array(id, host, hex(session), carrier, wall_ns, code, message) FROM findings",
        ];
        for table in tables {
            let rows: Vec<String> = sqlx::query_scalar(table).fetch_all(&indexer.readers).await.unwrap();
            told += &rows.join("\n");
            told.push('\n');
        }
        indexer.close().await;
        told
    }
}

fn event(session: u32, body: Body) -> Event {
    Event { boot_ns: 1, session, origin: None, body: Some(body) }
}

/// Changes of these severities.
fn left_behind(severities: Vec<i32>) -> Body {
    let changes =
        severities.into_iter().map(|severity| Change { severity, text: "c".repeat(100), ..Change::default() });
    Body::LeftBehind(LeftBehind { changes: changes.collect(), complete: true, ..LeftBehind::default() })
}

fn absurd() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(2), Just(u64::MAX), Just(1 << 63), any::<u64>()]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..30),
        Just(b"ls\r".to_vec()),
        Just(b"\x1b[2Jline\r\nline two\x1b[?1049h\x08\x08".to_vec()),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let process = || (any::<u32>(), absurd()).prop_map(|(pid, start_ns)| Process { pid: pid % 4, start_ns });
    prop_oneof![
        (process(), proptest::collection::vec(bytes(), 0..4)).prop_map(|(p, argv)| Body::Exec(Exec {
            process: Some(p),
            argv,
            ..Exec::default()
        })),
        Just(Body::Exec(Exec::default())),
        (process(), bytes()).prop_map(|(p, filename)| Body::ExecFailed(ExecFailed {
            process: Some(p),
            filename,
            ..Default::default()
        })),
        (process(), any::<u32>()).prop_map(|(p, status)| Body::Exit(Exit {
            process: Some(p),
            status,
            ..Exit::default()
        })),
        Just(Body::Exit(Exit::default())),
        (absurd(), bytes(), any::<u32>(), 0u32..300).prop_map(|(terminal, data, rows, cols)| {
            Body::TerminalOutput(TerminalOutput { terminal: terminal % 3, data, rows, cols, ..Default::default() })
        }),
        (absurd(), bytes()).prop_map(|(terminal, data)| Body::TerminalInput(TerminalInput {
            terminal,
            data,
            ..Default::default()
        })),
        absurd().prop_map(|bytes| Body::InputWithheld(InputWithheld { bytes, ..Default::default() })),
        absurd().prop_map(|records| Body::Gap(Gap { records, ..Gap::default() })),
        absurd().prop_map(|deadline_boot_ns| {
            Body::SessionOpened(SessionOpened { deadline_boot_ns, operator: "a".into(), ..Default::default() })
        }),
        absurd()
            .prop_map(|deadline_boot_ns| Body::SessionResumed(SessionResumed { deadline_boot_ns, live_processes: 1 })),
        Just(Body::SessionClosed(SessionClosed::default())),
        Just(Body::Alert(Alert::default())),
        proptest::collection::vec(0i32..4, 0..4).prop_map(left_behind),
        signed().prop_map(|signed| Body::Checkpoint(Checkpoint { signed })),
        signed().prop_map(|signed| Body::KeyEvolved(KeyEvolved { signed })),
        (signed(), absurd(), 0u8..3).prop_map(|(renewal, epoch, key)| {
            let (host_key, key) = (vec![key; 32], vec![key; 32]);
            let links = renewal.iter().cloned().collect();
            Body::KeyIntroduced(KeyIntroduced { host_key, epoch, key, links, renewal, reason: "\u{1b}".into() })
        }),
    ]
}

/// Statements that can be read, by nobody.
fn signed() -> impl Strategy<Value = Option<SignedStatement>> {
    let statement = (0u8..3, absurd(), absurd(), 0u8..3).prop_map(|(kind, epoch, seq, key)| {
        let kind = [Kind::Checkpoint, Kind::NextKey([key; 32]), Kind::NewHostKey([key; 32])][usize::from(kind)];
        let statement = Statement {
            kind,
            reasons: 0,
            host_id: [1; 16],
            host_key: [key; 32],
            epoch,
            stream_id: [1; 16],
            seq,
            hash: if seq == 0 { [0; 32] } else { [key + 1; 32] },
            boot_id: [0; 16],
            boot_ns: 0,
            wall_ns: 0,
            session: [0; 16],
            session_seq: 0,
            numbers: Vec::new(),
        };
        SignedStatement { statement: statement.encode(), signature: vec![key; 64] }
    });
    let noise = bytes().prop_map(|bytes| SignedStatement { statement: bytes.clone(), signature: bytes });
    proptest::option::of(prop_oneof![4 => statement, 1 => noise])
}

fn batch() -> impl Strategy<Value = Batch> {
    let session = prop_oneof![Just(vec![1; 16]), Just(vec![2; 16]), Just(vec![]), Just(vec![3; 17])];
    let witness = KernelRef { ring: Ring::Witness as i32, ..KernelRef::default() };
    let origin = prop_oneof![4 => Just(None), 1 => Just(Some(witness))];
    let event = (absurd(), prop_oneof![0u32..6, Just(u32::MAX)], origin, proptest::option::of(body()))
        .prop_map(|(boot_ns, session, origin, body)| Event { boot_ns, session, origin, body });
    (proptest::collection::vec(session, 0..4), proptest::collection::vec(event, 0..12))
        .prop_map(|(sessions, events)| Batch { sessions, events, resume: Vec::new() })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

proptest! {
    // Each case opens databases and waits for the disk some forty times.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever an enrolled host sends is indexed without a failure, and however often the indexer is stopped on the way, the rows
    /// are those of one uninterrupted run.
    #[test]
    fn absurd_batches_give_the_same_rows_however_often_the_indexer_stops(
        batches in proptest::collection::vec(batch(), 1..8),
        offset: i64,
    ) {
        let (interrupted, whole) = run(in_both_ways(&batches, offset));
        prop_assert_eq!(interrupted, whole);
    }
}

/// The rows after one pass a frame, each by an indexer of its own, and after all in one.
async fn in_both_ways(batches: &[Batch], offset: i64) -> (String, String) {
    let mut rig = Rig::new().await;
    rig.header.wall_offset_ns = offset;
    for batch in batches {
        let arrival = rig.add(batch).await;
        let mut indexer = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap();
        indexer.pass(arrival).await.unwrap();
        indexer.close().await;
    }
    let interrupted = rig.rows().await;
    Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    (interrupted, rig.rows().await)
}

#[tokio::test]
async fn exits_and_successors_belong_to_the_same_commands_however_the_frames_are_read() {
    let process = Some(Process { pid: 7, start_ns: 7 });
    let starts = || event(1, Body::Exec(Exec { process, argv: vec![b"a".to_vec()], ..Exec::default() }));
    let ends = || event(1, Body::Exit(Exit { process, ..Exit::default() }));
    let unknown = || event(1, Body::Exec(Exec::default()));
    // The second exec replaces the first; the third comes after an exit and replaces nothing.
    let events = vec![starts(), starts(), ends(), starts(), unknown(), unknown(), ends()];
    let sessions = vec![vec![1; 16]];
    let batches: Vec<Batch> = events
        .into_iter()
        .map(|event| Batch { sessions: sessions.clone(), events: vec![event], resume: Vec::new() })
        .collect();
    let (interrupted, whole) = in_both_ways(&batches, 0).await;
    assert_eq!(interrupted, whole);
    let mut rig = Rig::new().await;
    for batch in &batches {
        rig.add(batch).await;
    }
    Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    let reader = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap().reader();
    let session = reader.sessions_of([1; 16], None, 9).await.unwrap().remove(0).state.row;
    let commands = reader.commands(session, 0, 10).await.unwrap();
    let told: Vec<_> = commands.iter().map(|c| (c.number, c.replaced_by, c.exit.is_some())).collect();
    assert_eq!(told, [(1, 2, false), (2, 0, true), (3, 0, true), (4, 0, false), (5, 0, false)]);
}

#[tokio::test]
async fn a_long_list_of_what_was_left_behind_is_cut_and_says_so() {
    let mut rig = Rig::new().await;
    let door = Severity::OpensDoor as i32;
    let events = vec![event(1, left_behind([vec![door; 3], vec![1; 2000]].concat())), event(1, left_behind(vec![]))];
    rig.add(&Batch { sessions: vec![vec![1; 16]], events, resume: Vec::new() }).await;
    Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    let reader = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap().reader();
    let session = reader.sessions_of([1; 16], None, 9).await.unwrap().remove(0).state;
    assert_eq!((session.changes, session.doors), (2003, 3));
    let bytes = session.left_behind.unwrap();
    assert!(bytes.len() <= 64 * 1024 + 256, "{}", bytes.len());
    let left: LeftBehind = prost::Message::decode(bytes.as_slice()).unwrap();
    assert!(!left.complete && left.not_covered.len() == 1 && left.changes.len() > 100);
}

#[tokio::test]
async fn who_extended_a_session_and_where_it_was_closed_is_known() {
    let mut rig = Rig::new().await;
    let extended = |operator: &str, key: &str| {
        let (operator, key_fingerprint) = (operator.into(), key.into());
        event(1, Body::SessionExtended(SessionExtended { operator, key_fingerprint, ..SessionExtended::default() }))
    };
    let sessions = vec![vec![1; 16]];
    let many = (0..300).map(|n| extended(&n.to_string(), "key"));
    let events = [extended("bob", "SHA256:b"), extended("bob", "SHA256:b"), extended("bob", "SHA256:c")];
    rig.add(&Batch { sessions: sessions.clone(), events: events.to_vec(), resume: Vec::new() }).await;
    rig.add(&Batch { sessions: sessions.clone(), events: many.collect(), resume: Vec::new() }).await;
    let closes = vec![event(1, Body::SessionClosed(SessionClosed::default()))];
    let closed = rig.add(&Batch { sessions: sessions.clone(), events: closes.clone(), resume: Vec::new() }).await;
    rig.add(&Batch { sessions, events: closes, resume: Vec::new() }).await;
    Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    let reader = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap().reader();
    let session = reader.sessions_of([1; 16], None, 9).await.unwrap().remove(0).state;
    let who = |name: &str, key: &str| (name.to_owned(), key.to_owned());
    assert_eq!(session.joined[..2], [who("bob", "SHA256:b"), who("bob", "SHA256:c")]);
    assert_eq!((session.joined.len(), session.closed_arrival), (256, closed));
}

#[tokio::test]
async fn a_frame_that_lies_or_is_no_batch_is_a_gap_and_the_rest_is_indexed() {
    let mut rig = Rig::new().await;
    let opened = event(1, Body::SessionOpened(SessionOpened::default()));
    let sessions = vec![vec![1; 16]];
    rig.add(&Batch { sessions: sessions.clone(), events: vec![opened], resume: Vec::new() }).await;
    // A million events where the header says one, and noise.
    for raw in [[0x12, 0].repeat(1_000_000), vec![0xff; 100]] {
        rig.header.seq += 1;
        let sealed = seal_raw(Header { events: 1, ..rig.header }, &raw, 1).unwrap();
        rig.store_frame(sealed.bytes).await;
    }
    let after = event(1, Body::Exec(Exec { argv: vec![b"after".to_vec()], ..Exec::default() }));
    rig.add(&Batch { sessions, events: vec![after], resume: Vec::new() }).await;
    let done = Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    assert_eq!(done, Done { frames: 4, events: 2 });
    let indexer = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap();
    let session = indexer.reader().sessions_of([1; 16], None, 9).await.unwrap().remove(0).state;
    assert_eq!((session.gaps, session.commands), (2, 1));
}

/// Numbers of the frames after `after` that can be decoded, and of those that cannot.
async fn decodable(rig: &Rig, after: i64) -> (Vec<i64>, Vec<i64>) {
    let span = Span { host: None, after, until: i64::MAX };
    let frames = rig.store.read(span, PASS).await.unwrap();
    let decoded = Decoder::new(rig.store.clone()).decode(frames).await.unwrap();
    let (good, bad): (Vec<_>, Vec<_>) = decoded.iter().partition(|frame| frame.content.is_ok());
    let numbers = |frames: Vec<&Decoded>| frames.into_iter().map(|frame| frame.arrival).collect();
    (numbers(good), numbers(bad))
}

#[tokio::test]
async fn reading_may_begin_in_the_middle_of_a_run_and_goes_on_behind_a_damaged_one() {
    let mut rig = Rig::new().await;
    for n in 0..40 {
        let exec = Exec { argv: vec![format!("program {n}").into_bytes()], ..Exec::default() };
        rig.add(&Batch { events: vec![event(0, Body::Exec(exec))], ..Batch::default() }).await;
    }
    assert_eq!(decodable(&rig, 9).await, ((10..=40).collect(), vec![]));
    let damage = sqlx::query("UPDATE frames SET bytes = x'00' WHERE seq = 12");
    damage.execute(rig.store.writer()).await.unwrap();
    // Runs are of 16 frames: what is behind the damage in the second one is read again.
    assert_eq!(decodable(&rig, 9).await, ([10, 11].into_iter().chain(17..=40).collect(), (12..=16).collect()));
    assert_eq!(decodable(&rig, 13).await, ((17..=40).collect(), (14..=16).collect()));
}

#[tokio::test]
async fn long_frames_are_not_read_for_one_that_claims_to_continue_them() {
    let mut rig = Rig::new().await;
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 33) as u8
    });
    let noise: Vec<u8> = noise.take(2 * RUN_FRAME_MAX).collect();
    for _ in 0..15 {
        let exec = Exec { argv: vec![noise.clone()], ..Exec::default() };
        rig.add(&Batch { events: vec![event(0, Body::Exec(exec))], ..Batch::default() }).await;
    }
    // The frame of a run, moved to place 15.
    rig.header.seq += 1;
    let small = Batch { events: vec![Event::default()], ..Batch::default() };
    let mut bytes = rig.sealer.seal(rig.header, &mut small.clone(), u64::MAX).unwrap().bytes;
    bytes[6] = 15;
    let end = bytes.len() - HASH_LEN;
    let hash = Sha256::new().chain_update(b"breakglass-frame-v1\0").chain_update(&bytes[..end]).finalize();
    bytes[end..].copy_from_slice(&hash);
    rig.store_frame(bytes).await;
    let stretch = rig.store.stretch([1; 16], 1, 16, RUN_FRAME_MAX).await.unwrap();
    assert_eq!(stretch.len(), 0);
    assert_eq!(decodable(&rig, 14).await, (vec![15], vec![16]));
}

#[tokio::test]
async fn a_hundred_thousand_empty_events_and_a_thousand_terminals_are_bearable() {
    let mut rig = Rig::new().await;
    rig.add(&Batch { events: vec![Event::default(); 100_000], ..Batch::default() }).await;
    let shows = |terminal| {
        event(
            1,
            Body::TerminalOutput(TerminalOutput {
                terminal,
                data: b"x".to_vec(),
                rows: 9999,
                cols: 9999,
                ..Default::default()
            }),
        )
    };
    let events = (0..1000).map(shows).collect();
    rig.add(&Batch { sessions: vec![vec![1; 16]], events, resume: Vec::new() }).await;
    let done = Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    assert_eq!(done.events, 101_000);
}

#[tokio::test]
async fn an_index_of_another_store_is_built_anew() {
    let mut rig = Rig::new().await;
    rig.add(&Batch::default()).await;
    Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    let other = Rig::new().await;
    std::fs::copy(rig.path(), other.path()).unwrap();
    let indexer = Indexer::open(other.store.clone(), &other.path()).await.unwrap();
    assert_eq!(indexer.position, 0);
    std::fs::write(rig.path(), "this is not a database, whatever its name says").unwrap();
    assert_eq!(Indexer::open(rig.store.clone(), &rig.path()).await.unwrap().position, 0);
}
