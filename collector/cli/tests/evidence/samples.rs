//! The corpus: good files, and every kind of forgery with the check that must fail and the frame that it must name.

use breakglass_api::{
    checkpoint::{Signed, reason},
    frame::{Frame, HASH_LEN, HEADER_LEN},
    v1::event::Body,
};

use super::{
    forge::{Host, Parts, SESSION, rechain, recorded, recorded_by, resealed, sign, taken_out, with_payload},
    proofs,
};

/// A file and what must be found in it.
pub struct Sample {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// Host key to trust.
    pub trusted: Option<[u8; 32]>,
    /// Failed checks in order of their names, with the frame named.
    pub failed: Vec<(&'static str, Option<u64>)>,
    pub unproved: Vec<&'static str>,
    /// What the reader wants proved beside.
    pub asked: Asked,
    /// Whether it takes a look inside the frames to find it.
    pub inside: bool,
}

/// Keys and the like that the reader gives.
#[derive(Clone, Default)]
pub struct Asked {
    pub log_keys: Vec<String>,
    pub witness_keys: Vec<String>,
    pub quorum: Option<usize>,
    pub since: Option<Vec<u8>>,
    pub reviewers: Option<String>,
}

impl Sample {
    pub fn new(name: &'static str, bytes: Vec<u8>, failed: &[(&'static str, Option<u64>)]) -> Self {
        let mut failed = failed.to_vec();
        failed.sort_unstable();
        let unproved = vec!["log", "witnesses", "consistency", "review"];
        let trusted = Some(recorded(1).host_key());
        Self { name, bytes, trusted, failed, unproved, asked: Asked::default(), inside: false }
    }

    /// One more check that stays unproved.
    pub fn but_unproved(mut self, check: &'static str) -> Self {
        self.unproved.push(check);
        self
    }

    /// Only who looks inside the frames can find it.
    pub fn inside(self) -> Self {
        Self { inside: true, ..self }
    }

    pub fn verdict(&self) -> &'static str {
        match (self.failed.is_empty(), self.trusted.is_some()) {
            (false, _) => "broken",
            (true, true) => "verified",
            (true, false) => "unanchored",
        }
    }
}

pub fn all() -> Vec<Sample> {
    let mut samples = good();
    samples.extend(damaged());
    samples.extend(forged_frames());
    samples.extend(in_runs());
    samples.extend(forged_statements());
    samples.extend(stolen_keys());
    samples.extend(incomplete());
    samples.extend(proofs::all());
    samples
}

fn parts() -> Parts {
    Parts::of(&recorded(1))
}

/// The good file with one change, and a digest that fits again.
fn changed(name: &'static str, failed: &[(&'static str, Option<u64>)], change: impl FnOnce(&mut Parts)) -> Sample {
    let mut parts = parts();
    change(&mut parts);
    Sample::new(name, parts.file(), failed)
}

fn good() -> Vec<Sample> {
    let whole = Sample::new("whole", parts().file(), &[]);
    let unanchored = Sample { trusted: None, ..Sample::new("no key to compare", parts().file(), &[]) };
    let unknown = changed("sections of later versions", &[], |parts| {
        parts.others = vec![(15, b"later".to_vec()), (900, Vec::new())];
    });
    let mut first = Host::new(1);
    let opened = first.open();
    first.checkpoint(Some((reason::OPENED, opened)));
    let closed = first.close();
    first.checkpoint(Some((reason::CLOSED, closed)));
    let mut first = Sample::new("the first session, by the first key", Parts::of(&first).file(), &[]);
    first.unproved.push("complete");
    vec![whole, unanchored, unknown, first, restarted(), with_gap()]
}

fn restarted() -> Sample {
    let mut host = Host::new(1);
    let opened = host.open();
    host.checkpoint(Some((reason::OPENED, opened)));
    host.work("before");
    host.started(false);
    host.work("after");
    let closed = host.close();
    host.checkpoint(Some((reason::CLOSED, closed)));
    Sample::new("other kernel programs in the middle", Parts::of(&host).file(), &[])
}

fn with_gap() -> Sample {
    let mut host = Host::new(1);
    let opened = host.open();
    host.checkpoint(Some((reason::OPENED, opened)));
    host.gap(true);
    host.work("x");
    let closed = host.close();
    host.checkpoint(Some((reason::CLOSED, closed)));
    let mut sample = Sample::new("records declared missing", Parts::of(&host).file(), &[]);
    sample.unproved.push("complete");
    sample
}

/// Frames that share their compression: all from the opening in frame 5 on are one run.
fn in_runs() -> Vec<Sample> {
    let host = recorded_by(Host::with_runs(1));
    let sample = |name, failed: &[(&'static str, Option<u64>)], change: fn(&mut Parts)| {
        let mut parts = Parts::of(&host);
        change(&mut parts);
        Sample::new(name, parts.file(), failed)
    };
    let unreadable = ("content", Some(10));
    let holes = ("complete", Some(5));
    let mut samples = odd_payloads(&host);
    samples.extend([
        sample("in runs", &[], |parts| assert!(Frame::parse(parts.frame(18)).unwrap().readable_from() == 5)),
        sample("in runs, flip", &[("frames", Some(9)), unreadable, holes], |parts| parts.frame(9)[130] ^= 4),
        sample("in runs, drop", &[("chain", Some(10)), unreadable, holes], |parts| drop(parts.frames.remove(4))),
        sample("in runs, one frame changed", &[("chain", Some(10)), unreadable, holes], |parts| {
            *parts.frame(9) = innocent(&taken_out(&parts.frames[..5]));
        }),
        sample("in runs, one frame moved to another place", &[("frames", Some(9)), unreadable, holes], |parts| {
            parts.frame(9)[6] = 3;
        }),
        sample("in runs, no beginning", &[("opening", Some(5)), ("content", Some(6)), ("complete", None)], |parts| {
            parts.frames.remove(0);
        })
        .but_unproved("time"),
    ]);
    samples
}

/// Payloads of which one decompressor makes this and another that, in frame 9: the host itself could sign such.
fn odd_payloads(host: &Host) -> Vec<Sample> {
    let sample = |name, change: fn(Vec<u8>) -> Vec<u8>| {
        let mut parts = Parts::of(host);
        let frame = parts.frame(9);
        let payload = change(frame[HEADER_LEN..frame.len() - HASH_LEN].to_vec());
        *frame = with_payload(frame, &payload);
        Sample::new(name, parts.file(), &[("chain", Some(10)), ("content", Some(9)), ("complete", Some(5))])
    };
    vec![
        sample("in runs, a payload that ends the run", |mut payload| {
            payload[0] |= 1;
            payload
        }),
        sample("in runs, a payload that is a frame of zstd", |payload| {
            [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x40][..], &payload].concat()
        }),
        sample("in runs, a skippable frame first", |payload| {
            [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0][..], &payload].concat()
        }),
        sample("in runs, a payload cut in a block", |mut payload| {
            payload.pop();
            payload
        }),
        sample("in runs, a payload of nothing", |_| Vec::new()),
        sample("in runs, a payload of many empty blocks", |payload| [vec![0; 64 * 3], payload].concat()),
    ]
}

/// Accidents, and forgers who do not know the digest.
fn damaged() -> Vec<Sample> {
    let good = parts().file();
    let at = |needle: &[u8]| good.windows(needle.len()).position(|bytes| bytes == needle).unwrap();
    let frame = at(&parts().frame(9)[..]);
    let mut flipped = good.clone();
    flipped[frame + 130] ^= 4;
    let mut trailing = good.clone();
    trailing.push(0);
    let mut magic = good.clone();
    magic[0] = b'X';
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    let nothing = [
        ("checkpoints", None),
        ("chain", None),
        ("closing", None),
        ("covered", None),
        ("file", None),
        ("frames", None),
        ("host-key", None),
        ("opening", None),
    ];
    vec![
        Sample::new("a flipped bit", flipped, &[("file", None), ("frames", Some(9)), ("complete", Some(5))]),
        Sample::new(
            "cut in the middle of a frame",
            good[..frame + 50].to_vec(),
            &[("file", None), ("covered", Some(7)), ("closing", Some(18)), ("complete", Some(5))],
        ),
        Sample::new("a byte behind the end", trailing, &[("file", None)]),
        Sample::new("another kind of file", magic, &nothing),
        Sample::new("an endless section", huge, &nothing),
        Sample::new("nothing", Vec::new(), &nothing),
    ]
}

fn forged_frames() -> Vec<Sample> {
    vec![
        changed("flip", &[("frames", Some(9)), ("complete", Some(5))], |parts| parts.frame(9)[130] ^= 4),
        changed("flip in the hash", &[("frames", Some(9)), ("complete", Some(5))], |parts| {
            *parts.frame(9).last_mut().unwrap() ^= 1
        }),
        changed("flip in the first frame", &[("frames", None), ("opening", Some(5))], |parts| {
            parts.frame(5)[125] ^= 1;
        }),
        changed("one frame changed and sealed again", &[("chain", Some(10))], |parts| {
            *parts.frame(9) = innocent(parts.frame(9));
        }),
        changed("a signed frame changed and sealed again", &[("chain", Some(11)), ("covered", Some(10))], |parts| {
            *parts.frame(10) = innocent(parts.frame(10));
        }),
        changed("fork: changed and chained again", &[("covered", Some(10))], |parts| {
            *parts.frame(9) = innocent(parts.frame(9));
            rechain(parts, 10);
        }),
        changed("drop", &[("chain", Some(10)), ("complete", Some(5))], |parts| drop(parts.frames.remove(4))),
        changed("swap", &[("chain", Some(9))], |parts| parts.frames.swap(3, 4)),
        changed("insert", &[("chain", Some(8))], |parts| {
            let again = resealed(parts.frame(8), |header, _| header.first_boot_ns += 1);
            parts.frames.insert(4, again);
        }),
        changed("insert, numbered and chained again", &[("content", Some(18)), ("covered", Some(10))], |parts| {
            let again = parts.frame(8).clone();
            parts.frames.insert(4, again);
            for at in 0..parts.frames.len() {
                parts.frames[at] = resealed(&parts.frames[at], |header, _| header.seq = at as u64 + 5);
            }
            rechain(parts, 5);
        }),
        changed("foreign frame", &[("chain", Some(9)), ("complete", Some(5))], |parts| {
            parts.frames[4] = resealed(&parts.frames[4], |header, _| header.stream_id = [9; 16]);
        }),
        changed("truncate tail", &[("covered", Some(16)), ("closing", Some(18)), ("complete", Some(5))], |parts| {
            parts.frames.truncate(12)
        }),
        changed("truncate tail at a checkpoint", &[("closing", None)], |parts| {
            parts.frames.truncate(11);
            parts.checkpoints.pop();
        }),
        changed("truncate head", &[("opening", Some(5))], |parts| drop(parts.frames.remove(0))),
        changed(
            "no frames",
            &[("frames", None), ("chain", None), ("covered", None), ("opening", Some(5)), ("closing", Some(18))],
            |parts| parts.frames.clear(),
        ),
    ]
}

fn forged_statements() -> Vec<Sample> {
    vec![
        changed("old checkpoint in place of the last", &[("closing", None), ("covered", Some(16))], |parts| {
            let old = parts.checkpoints[parts.checkpoints.len() - 2].clone();
            *parts.checkpoints.last_mut().unwrap() = old;
        }),
        changed(
            "a checkpoint with another hash",
            &[("checkpoints", None), ("closing", None), ("covered", Some(16))],
            |parts| {
                parts.checkpoints.last_mut().unwrap()[130] ^= 1;
            },
        ),
        changed("a checkpoint of another host", &[("checkpoints", None)], |parts| {
            parts.checkpoints.insert(1, recorded(2).checkpoints[0].encode());
        }),
        changed("no checkpoints", &[("opening", None), ("closing", None), ("covered", Some(12))], |parts| {
            parts.checkpoints.clear();
        }),
        changed(
            "a link is missing",
            &[("key-chain", None), ("checkpoints", None), ("covered", Some(6)), ("closing", None)],
            |parts| drop(parts.links.remove(1)),
        ),
        changed(
            "no links",
            &[("checkpoints", None), ("opening", None), ("closing", None), ("covered", Some(5))],
            |parts| {
                parts.links.clear();
            },
        ),
        changed("another session", &[("opening", None), ("closing", None)], |parts| {
            let other = uuid::Uuid::from_bytes([7; 16]).to_string();
            parts.manifest = parts.manifest.replace(&uuid::Uuid::from_bytes(SESSION).to_string(), &other);
        }),
        Sample::new("another host's record", Parts::of(&recorded(2)).file(), &[("host-key", None)]),
        two_claims(),
    ]
}

/// A host that signed two different frames, and shows only one of them.
fn two_claims() -> Sample {
    let host = recorded(1);
    let mut parts = Parts::of(&host);
    let mut statement = host.checkpoints[2].statement.clone();
    statement.hash = [1; 32];
    let about = statement.seq;
    parts.checkpoints.push(sign(statement, &host.keys[2]).encode());
    Sample::new("two statements about one frame", parts.file(), &[("covered", Some(about))])
}

/// Whoever had root on the host at the end, and so the key in use then, and changes what was recorded before.
fn stolen_keys() -> Vec<Sample> {
    let host = recorded(1);
    let stolen = host.keys[3].clone();

    // Changes one command, chains again, throws away what was signed about it, and signs the end with the key in use.
    let mut resigned = Parts::of(&host);
    *resigned.frame(9) = innocent(resigned.frame(9));
    rechain(&mut resigned, 10);
    let resign = |parts: &Parts, old: &Signed, seq: usize| {
        let mut statement = old.statement.clone();
        (statement.epoch, statement.hash) = (3, Frame::parse(&parts.frames[seq - 5]).unwrap().hash);
        sign(statement, &stolen).encode()
    };
    let opening = host.checkpoints[1].clone();
    let closing = host.checkpoints.last().unwrap().clone();
    resigned.checkpoints = vec![resign(&resigned, &opening, 5), resign(&resigned, &closing, 18)];

    // The same in the last minute, when the key in use had signed for nothing else yet: this nobody can find in the file.
    let mut late = Parts::of(&host);
    *late.frame(17) = innocent(late.frame(17));
    rechain(&mut late, 18);
    late.checkpoints.pop();
    late.checkpoints.push(resign(&late, &closing, 18));

    vec![
        // The link that the key before had signed, a minute ago, says another frame 11.
        Sample::new("re-sign with the current key", resigned.file(), &[("covered", Some(11))]),
        Sample::new("re-sign after the last change of the key", late.file(), &[]),
        in_a_new_stream(&host),
    ]
}

/// The session told anew in a stream that never was, with a chain of keys that goes on from the stolen one.
fn in_a_new_stream(host: &Host) -> Sample {
    let mut thief = host.clone();
    thief.now_ns += 3_600_000_000_000;
    thief.turn();
    let mut thief = Host { stream: [0x66; 16], frames: Vec::new(), checkpoints: Vec::new(), ..thief };
    thief.now_ns -= 3_600_000_000_000;
    let opened = thief.open();
    thief.checkpoint(Some((reason::OPENED, opened)));
    thief.turn();
    thief.work("nothing at all");
    let closed = thief.close();
    thief.checkpoint(Some((reason::CLOSED, closed)));
    Sample::new("re-sign in a new stream", Parts::of(&thief).file(), &[("time", Some(1))])
}

/// Records that the kernel made and that no frame holds.
fn incomplete() -> Vec<Sample> {
    let mut host = Host::new(1);
    let opened = host.open();
    host.checkpoint(Some((reason::OPENED, opened)));
    host.work("a");
    host.gap(false);
    host.work("b");
    let closed = host.close();
    host.checkpoint(Some((reason::CLOSED, closed)));
    let hole = Sample::new("records are missing in silence", Parts::of(&host).file(), &[("complete", Some(1))]);

    let mut host = Host::new(1);
    let opened = host.open();
    host.checkpoint(Some((reason::OPENED, opened)));
    host.work("a");
    let closed = host.close();
    host.numbers.insert(1, 90);
    host.checkpoint(Some((reason::CLOSED, closed)));
    let tail = Sample::new("the last records are missing", Parts::of(&host).file(), &[("complete", Some(1))]);

    let mut host = Host::new(1);
    let elsewhere = host.work("not an opening");
    host.checkpoint(Some((reason::OPENED, elsewhere)));
    let closed = host.close();
    host.checkpoint(Some((reason::CLOSED, closed)));
    let content =
        Sample::new("the opening is not where it is said to be", Parts::of(&host).file(), &[("content", Some(1))]);
    vec![hole, tail, content]
}

/// The same frame with commands that nobody minds.
fn innocent(bytes: &[u8]) -> Vec<u8> {
    resealed(bytes, |_, batch| {
        for event in &mut batch.events {
            if let Some(Body::Exec(exec)) = &mut event.body {
                exec.argv = vec![b"true".to_vec()];
            } else {
                event.boot_ns += 1;
            }
        }
    })
}
