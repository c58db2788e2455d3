//! Few bytes that stand for many.

use super::*;

/// A frame of one Exec with an argument of `length` bytes, which takes next to nothing compressed.
async fn add_large(rig: &mut Rig, length: usize) {
    let exec = Exec { argv: vec![vec![b'a'; length]], ..Exec::default() };
    rig.add(&Batch { sessions: vec![vec![1; 16]], events: vec![event(1, Body::Exec(exec))], ..Batch::default() }).await;
}

#[tokio::test]
async fn a_page_holds_no_more_than_its_bound_decompressed_and_at_least_one_frame() {
    let mut rig = Rig::new().await;
    for megabytes in [10, 10, 10, 10, 31, 31, 1] {
        add_large(&mut rig, megabytes << 20).await;
    }
    let frames = async |after, raw| {
        let frames = rig.store.read(Span { host: None, after, until: i64::MAX }, Page { raw, ..PASS }).await.unwrap();
        assert!(frames.iter().map(|frame| frame.bytes.len()).sum::<usize>() < 100_000);
        frames.iter().map(|frame| frame.arrival).collect::<Vec<_>>()
    };
    assert_eq!(frames(0, PASS.raw).await, [1, 2, 3]);
    assert_eq!(frames(3, PASS.raw).await, [4]);
    assert_eq!(frames(4, PASS.raw).await, [5]);
    assert_eq!(frames(5, PASS.raw).await, [6]);
    assert_eq!(frames(4, 1).await, [5], "however large");
    assert_eq!(frames(0, usize::MAX).await, [1, 2, 3, 4, 5, 6, 7]);
    // In as many passes as it takes, all is indexed.
    let done = Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    assert_eq!(done, Done { frames: 7, events: 7 });
}

#[tokio::test]
async fn a_frame_that_yields_much_is_written_in_parts_and_counts_once() {
    let mut rig = Rig::new().await;
    let exec = |n: u32| {
        let process = Some(Process { pid: n / 2, start_ns: 1 });
        event(1, Body::Exec(Exec { process, argv: vec![vec![b'a'; 40_000]], ..Exec::default() }))
    };
    let mut events: Vec<Event> = (0..600).map(exec).collect();
    // What ends commands of the parts before.
    events.extend(
        (0..300)
            .map(|pid| event(1, Body::Exit(Exit { process: Some(Process { pid, start_ns: 1 }), ..Exit::default() }))),
    );
    let small = Batch { sessions: vec![vec![1; 16]], events: vec![exec(9999)], ..Batch::default() };
    rig.add(&Batch { events, ..small.clone() }).await;
    rig.add(&small).await;
    let done = Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    assert_eq!(done, Done { frames: 2, events: 901 });
    let indexer = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap();
    let counts: (i64, i64) =
        sqlx::query_as("SELECT frames, events FROM hosts").fetch_one(&indexer.readers).await.unwrap();
    assert_eq!(counts, (2, 901));
    let counts: (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT commands FROM sessions), count(*), count(exit), (SELECT count(*) FROM lines) FROM commands",
    )
    .fetch_one(&indexer.readers)
    .await
    .unwrap();
    assert_eq!(counts, (601, 601, 300, 601));
    let lines: (i64, i64, i64) = sqlx::query_as(
        "SELECT first_line, last_line, (SELECT count(*) FROM commands WHERE replaced_by <> 0) FROM sessions",
    )
    .fetch_one(&indexer.readers)
    .await
    .unwrap();
    assert_eq!(lines, (1, 601, 300));
}

#[tokio::test]
async fn what_is_large_only_in_memory_is_a_gap_and_the_rest_is_indexed() {
    let mut rig = Rig::new().await;
    let sessions = vec![vec![1; 16]];
    let opened = event(1, Body::SessionOpened(SessionOpened::default()));
    rig.add(&Batch { sessions: sessions.clone(), events: vec![opened], ..Batch::default() }).await;
    let changes =
        event(1, Body::LeftBehind(LeftBehind { changes: vec![Change::default(); 1_000_000], ..LeftBehind::default() }));
    rig.add(&Batch { sessions: sessions.clone(), events: vec![changes], ..Batch::default() }).await;
    add_large(&mut rig, 10).await;
    let done = Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
    assert_eq!(done, Done { frames: 3, events: 2 });
    let session = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap().reader();
    let session = session.session_again(1).await.unwrap().unwrap().state;
    assert_eq!((session.gaps, session.commands, session.changes), (1, 1, 0));
}

/// That terminal `n` shows `data` in a window of the largest size; terminals of 200 are a session's.
fn shown(n: u32, data: &str) -> Event {
    let output =
        TerminalOutput { terminal: n.into(), data: data.into(), rows: 256, cols: 512, ..TerminalOutput::default() };
    event(n / 200 + 1, Body::TerminalOutput(output))
}

#[tokio::test]
async fn terminals_that_show_much_at_once_are_read_in_several_passes() {
    let mut rig = Rig::new().await;
    let sessions: Vec<Vec<u8>> = (1..=4).map(|n| vec![n; 16]).collect();
    // More than 100 KiB each, as they are put away.
    let full: String = (1..=250).map(|row| format!("\x1b[{row};1Hrow {row}\x1b[{row};512Hx")).collect();
    let mut last = 0;
    for first in [0, 400] {
        let events = (first..first + 400).map(|n| shown(n, &full)).collect();
        last = rig.add(&Batch { sessions: sessions.clone(), events, ..Batch::default() }).await;
    }
    let mut indexer = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap();
    let mut passes = Vec::new();
    while indexer.position < last {
        passes.push(indexer.pass(last).await.unwrap());
    }
    assert_eq!(passes, [Done { frames: 1, events: 400 }; 2]);
    let count: (i64, i64) =
        sqlx::query_as("SELECT count(*), count(state) FROM terminals").fetch_one(&indexer.readers).await.unwrap();
    assert_eq!(count, (800, 800));
}

#[tokio::test]
async fn few_transcripts_begin_in_one_frame() {
    let mut rig = Rig::new().await;
    let sessions: Vec<Vec<u8>> = (1..=4).map(|n| vec![n; 16]).collect();
    let mut states = Vec::new();
    for _ in 0..2 {
        let events = (0..600).map(|n| shown(n, "x")).collect();
        rig.add(&Batch { sessions: sessions.clone(), events, ..Batch::default() }).await;
        Indexer::rebuild(rig.store.clone(), &rig.path()).await.unwrap();
        let indexer = Indexer::open(rig.store.clone(), &rig.path()).await.unwrap();
        let count: (i64, i64) =
            sqlx::query_as("SELECT count(*), count(state) FROM terminals").fetch_one(&indexer.readers).await.unwrap();
        states.push(count);
    }
    assert_eq!(states, [(600, 512), (600, 600)], "the others begin with the next frame");
}
