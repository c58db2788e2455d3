//! Files with proofs of a transparency log and with reviews, and what a forger can do to those.

use breakglass_api::{checkpoint::reason, evidence::kind, frame::Frame};
use breakglass_proof::review::{LogHead, Review, Verdict};

use super::{
    forge::{Host, Parts, SESSION, extended, rechain, recorded, resealed, sign},
    ledger::{Ledger, keys, operator, person, review, reviewers, rita, sam, signed, signed_by_token},
    samples::{Asked, Sample},
};

/// Leaves of the log when the reader looked last.
const EARLIER: usize = 7;

/// Everything that the collector exports, and what the reader asks for.
struct Draft {
    parts: Parts,
    ledger: Ledger,
    asked: Asked,
    /// Reviews go before the log's sections.
    reviews: Vec<Vec<u8>>,
}

impl Draft {
    fn new() -> Self {
        Self::of_host(recorded(1))
    }

    fn of_host(host: Host) -> Self {
        let ledger = Ledger::of(&host);
        let mut parts = Parts::of(&host);
        ledger.prove(&mut parts);
        parts.others.push((kind::CONSISTENCY, ledger.consistency(EARLIER)));
        let asked = Asked {
            log_keys: vec![keys()[0].public().to_string()],
            witness_keys: [&keys()[1], &keys()[2]].map(|key| key.public().to_string()).to_vec(),
            quorum: None,
            since: Some(ledger.first(EARLIER).note(&[])),
            reviewers: Some(reviewers()),
        };
        let mut draft = Self { parts, ledger, asked, reviews: Vec::new() };
        draft.reviews = vec![signed(&draft.review("rita"), &rita())];
        draft
    }

    /// The last frame of the file and its hash.
    fn last(&self) -> (u64, [u8; 32]) {
        let last = Frame::parse(self.parts.frames.last().unwrap()).unwrap();
        (last.header.seq, last.hash)
    }

    /// What rita saw: the log as it is in the file.
    fn review(&self, reviewer: &str) -> Review {
        review(reviewer, self.last(), Some(self.ledger.head()))
    }

    /// Sections of a kind, to be changed.
    fn of(&mut self, wanted: u32) -> Vec<&mut Vec<u8>> {
        self.parts.others.iter_mut().filter(|(kind, _)| *kind == wanted).map(|(_, content)| content).collect()
    }

    fn file(&self) -> Vec<u8> {
        let mut parts = self.parts.clone();
        let reviews = self.reviews.iter().map(|review| (kind::REVIEW, review.clone()));
        parts.others = reviews.chain(parts.others).collect();
        parts.file()
    }
}

/// The whole file with one change.
fn changed(name: &'static str, failed: &[(&'static str, Option<u64>)], change: impl FnOnce(&mut Draft)) -> Sample {
    let mut draft = Draft::new();
    change(&mut draft);
    asked(name, failed, draft)
}

fn asked(name: &'static str, failed: &[(&'static str, Option<u64>)], draft: Draft) -> Sample {
    let bytes = draft.file();
    Sample { asked: draft.asked, unproved: Vec::new(), ..Sample::new(name, bytes, failed) }
}

fn unproved(sample: Sample, unproved: &[&'static str]) -> Sample {
    Sample { unproved: unproved.to_vec(), ..sample }
}

pub fn all() -> Vec<Sample> {
    let mut samples = good();
    samples.extend(withheld());
    samples.extend(other_logs());
    samples.extend(unwitnessed());
    samples.extend(forged_reviews());
    samples
}

fn good() -> Vec<Sample> {
    let nothing = ["log", "witnesses", "consistency", "review"];
    vec![
        changed("logged, witnessed and reviewed", &[], |_| {}),
        unproved(changed("the same, and nobody asks", &[], |draft| draft.asked = Asked::default()), &nothing),
        changed("one witness of two is enough", &[], |draft| {
            *draft.of(kind::LOG_CHECKPOINT)[0] = draft.ledger.note(&[&keys()[2]]);
            draft.asked.quorum = Some(1);
        }),
        changed("the reader saw this very tree", &[], |draft| draft.asked.since = Some(draft.ledger.note(&[]))),
        changed("reviewed with ECDSA", &[], |draft| draft.reviews = vec![signed(&draft.review("sam"), &sam())]),
        changed("reviewed with a token", &[], |draft| {
            draft.reviews = vec![signed_by_token(&draft.review("tess"), 1)];
        }),
        changed("a concern, then another reviewer", &[], |draft| {
            let concern = Review { verdict: Verdict::Concern, ..draft.review("sam") };
            draft.reviews.insert(0, signed(&concern, &sam()));
        }),
        unproved(changed("not reviewed", &[], |draft| draft.reviews.clear()), &["review"]),
        unproved(
            changed("reviewed before the last frames came", &[], |draft| {
                let about = Frame::parse(draft.parts.frame(10)).unwrap();
                let early = review("rita", (10, about.hash), None);
                draft.reviews = vec![signed(&early, &rita())];
            }),
            &["review"],
        ),
        unproved(
            changed("the reader has seen more of the log since", &[], |draft| {
                draft.parts.others.retain(|(kind, _)| *kind < kind::LOG_CHECKPOINT);
                let shorter = draft.ledger.first(draft.ledger.size() - 2);
                shorter.prove(&mut draft.parts);
                draft.asked.since = Some(draft.ledger.note(&[]));
                draft.reviews = vec![signed(&review("rita", draft.last(), Some(shorter.head())), &rita())];
            }),
            &["consistency"],
        ),
    ]
}

/// What the host signed is not in the log.
fn withheld() -> Vec<Sample> {
    vec![
        changed("a log entry is withheld", &[("log", Some(10))], |draft| {
            // The proofs stand in the order of the checkpoints: about frames 5, 10, 15 and 18.
            let at = draft.parts.others.iter().position(|(kind, _)| *kind == kind::INCLUSION).unwrap();
            draft.parts.others.remove(at + 1);
        }),
        changed("a proof of nothing", &[("log", Some(10))], |draft| {
            draft.of(kind::INCLUSION)[1][50] ^= 1;
        }),
        changed("a proof at another index", &[("log", Some(10))], |draft| {
            draft.of(kind::INCLUSION)[1][32] += 1;
        }),
        changed("a proof that is cut short", &[("log", None)], |draft| {
            draft.of(kind::INCLUSION)[1].truncate(39);
        }),
        changed("signed again with a stolen key, after the log had it", &[("log", Some(18))], |draft| {
            let host = recorded(1);
            *draft.parts.frame(17) = resealed(&draft.parts.frame(17).clone(), |header, _| header.first_boot_ns += 1);
            rechain(&mut draft.parts, 18);
            let mut statement = host.checkpoints.last().unwrap().statement.clone();
            assert!(statement.marks(reason::CLOSED, SESSION));
            statement.hash = draft.last().1;
            *draft.parts.checkpoints.last_mut().unwrap() = sign(statement, &host.keys[3]).encode();
            draft.reviews.clear();
        })
        .but_unproved("review"),
        changed("an old checkpoint of the log", &[("consistency", None), ("log", Some(10))], |draft| {
            // As it was before the second of the session's checkpoints.
            let old = draft.ledger.first(9);
            draft.parts.others.retain(|(kind, _)| *kind < kind::LOG_CHECKPOINT);
            old.prove(&mut draft.parts);
            let earlier = old.consistency(EARLIER);
            draft.parts.others.push((kind::CONSISTENCY, earlier));
        }),
        changed("no log at all", &[("log", None), ("witnesses", None)], |draft| draft.parts.others.clear())
            .but_unproved("consistency"),
        changed("proofs without the log", &[("consistency", None), ("log", None), ("witnesses", None)], |draft| {
            draft.parts.others.retain(|(kind, _)| *kind != kind::LOG_CHECKPOINT);
        }),
    ]
}

/// Another log than the one that everybody else sees.
fn other_logs() -> Vec<Sample> {
    vec![
        changed("wrong log key", &[("log", None)], |draft| {
            draft.asked.log_keys = vec![keys()[3].public().to_string()];
            draft.asked.since = None;
        })
        .but_unproved("consistency"),
        changed("the log's name is changed", &[("consistency", None), ("log", None), ("witnesses", None)], |draft| {
            let note = draft.of(kind::LOG_CHECKPOINT).remove(0);
            let text = String::from_utf8(note.clone()).unwrap();
            *note = text.replacen("log.example/1\n", "log.example/2\n", 1).into_bytes();
        }),
        changed("two checkpoints of the log", &[("log", None)], |draft| {
            let note = draft.of(kind::LOG_CHECKPOINT)[0].clone();
            draft.parts.others.insert(0, (kind::LOG_CHECKPOINT, note));
        }),
        changed("not a note", &[("consistency", None), ("log", None), ("witnesses", None)], |draft| {
            draft.of(kind::LOG_CHECKPOINT)[0].truncate(40);
        }),
        changed("the log was rewritten since the reader looked", &[("consistency", None)], |draft| {
            draft.asked.since = Some(draft.ledger.first(EARLIER).rewritten(2).note(&[]));
        }),
        changed("two trees of one size", &[("consistency", None)], |draft| {
            draft.asked.since = Some(draft.ledger.clone().rewritten(2).note(&[]));
        }),
        changed("no proof that the log continues", &[("consistency", None)], |draft| {
            draft.parts.others.retain(|(kind, _)| *kind != kind::CONSISTENCY);
        }),
        changed("a wrong proof that the log continues", &[("consistency", None)], |draft| {
            draft.of(kind::CONSISTENCY)[0][45] ^= 1;
        }),
        changed("the reviewer was shown another log", &[("consistency", None)], |draft| {
            let head = draft.ledger.clone().rewritten(15).head();
            draft.reviews = vec![signed(&Review { log: Some(head), ..draft.review("rita") }, &rita())];
        }),
        changed("the reviewer was shown a longer log", &[("consistency", None)], |draft| {
            let head = draft.ledger.head();
            let longer = LogHead { size: head.size + 1, ..head };
            draft.reviews = vec![signed(&Review { log: Some(longer), ..draft.review("rita") }, &rita())];
        }),
    ]
}

fn fingerprint(key: &ssh_key::PrivateKey) -> String {
    key.fingerprint(ssh_key::HashAlg::Sha256).to_string()
}

fn unwitnessed() -> Vec<Sample> {
    let [_, first, second, _] = keys();
    vec![
        changed("a cosignature is missing", &[("witnesses", None)], |draft| {
            *draft.of(kind::LOG_CHECKPOINT)[0] = draft.ledger.note(&[first]);
        }),
        changed("one witness twice", &[("witnesses", None)], |draft| {
            *draft.of(kind::LOG_CHECKPOINT)[0] = draft.ledger.note(&[first, first]);
        }),
        changed("the cosignature of another tree", &[("witnesses", None)], |draft| {
            let other = String::from_utf8(draft.ledger.first(9).note(&[second])).unwrap();
            let mut note = draft.ledger.note(&[first]);
            note.extend(format!("{}\n", other.lines().last().unwrap()).into_bytes());
            *draft.of(kind::LOG_CHECKPOINT)[0] = note;
        }),
    ]
}

fn forged_reviews() -> Vec<Sample> {
    let forged = |name: &'static str, make: fn(&Draft) -> Vec<u8>| {
        changed(name, &[("review", None)], |draft| draft.reviews = vec![make(draft)])
    };
    vec![
        forged("a review with a word changed", |draft| {
            let signed = String::from_utf8(draft.reviews[0].clone()).unwrap();
            signed.replacen("note: as agreed", "note: as wanted", 1).into_bytes()
        }),
        forged("a review by somebody who is no reviewer", |draft| signed(&draft.review("rita"), &person(b'e'))),
        forged("a review in another's name", |draft| signed(&draft.review("sam"), &rita())),
        forged("a review without a signature", |draft| draft.review("rita").encode().unwrap().into_bytes()),
        forged("a review of another session", |draft| {
            signed(&Review { session: [7; 16], ..draft.review("rita") }, &rita())
        }),
        forged("a review of other frames", |draft| {
            signed(&Review { last_hash: [7; 32], ..draft.review("rita") }, &rita())
        }),
        forged("a review of a frame that is not there", |draft| {
            signed(&Review { last_frame: 99, ..draft.review("rita") }, &rita())
        }),
        forged("a review with a token that nobody touched", |draft| signed_by_token(&draft.review("tess"), 0)),
        forged("the operator's own review", |draft| signed(&draft.review("alice"), &operator())).inside(),
        // She may, where somebody else extended it, and may not where she did: by name, and by key under another name.
        asked("a session that somebody else extended", &[], Draft::of_host(extended(1, "bob", "SHA256:other")))
            .inside(),
        asked("a review by who extended it", &[("review", None)], Draft::of_host(extended(1, "rita", ""))).inside(),
        asked(
            "a review with the key that extended it",
            &[("review", None)],
            Draft::of_host(extended(1, "bob", &fingerprint(&rita()))),
        )
        .inside(),
        changed("more reviews than are looked at", &[("review", None)], |draft| {
            draft.reviews = vec![draft.reviews[0].clone(); 65];
        }),
    ]
}
