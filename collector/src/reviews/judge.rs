//! Whether a review counts: a pure decision, without I/O.

use breakglass_proof::review::{LogHead, Review};
use breakglass_proof::reviewers::{Refused, Reviewers};

/// The session as the collector holds it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Session, host and stream.
    pub ids: [[u8; 16]; 3],
    /// Whether it is closed.
    pub closed: bool,
    /// The last frame of its evidence, and its hash.
    pub head: (u64, [u8; 32]),
    /// Name and fingerprint of the key of whoever opened it, and of everybody who extended it.
    pub operators: Vec<(String, String)>,
}

/// Why a review does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Signed in another's name than the caller's.
    #[error("the review is signed as {signed:?}, and your certificate says {caller:?}: sign under your own name")]
    NotYou {
        /// Name in the text.
        signed: String,
        /// Name of the caller.
        caller: String,
    },
    /// The signature.
    #[error("{0}; whoever may review is listed in the file `reviewers` of the collector's folder")]
    Signature(#[from] Refused),
    /// Their own session.
    #[error("{0} opened or extended this session, and somebody else has to review it")]
    OwnSession(String),
    /// Another session, host or stream.
    #[error("the review is about another session than the one that is held under this id")]
    OtherSession,
    /// It goes on.
    #[error("the session is still open: it can be reviewed once it is closed")]
    StillOpen,
    /// More was recorded, or something else.
    #[error(
        "the review is about frame {reviewed}, and the record now ends at frame {now}: look at it again, and sign again"
    )]
    StaleHead {
        /// The review's frame.
        reviewed: u64,
        /// The last one.
        now: u64,
    },
    /// Another log than this one.
    #[error("the review is about another transparency log, or another state of it, than this collector's")]
    OtherLog,
}

impl Misfit {
    /// A stable word.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotYou { .. } => "not-you",
            Self::Signature(_) => "bad-signature",
            Self::OwnSession(_) => "own-session",
            Self::OtherSession => "other-session",
            Self::StillOpen => "still-open",
            Self::StaleHead { .. } => "stale-head",
            Self::OtherLog => "other-log",
        }
    }
}

/// Whether `caller` may sign off `subject` with this review; returns the fingerprint of the key. `log` tells whether a state of the log
/// is one that the collector's log had.
pub fn judge(
    review: &Review,
    (text, armour): (&[u8], &[u8]),
    caller: &str,
    subject: &Subject,
    reviewers: &Reviewers,
    log: impl FnOnce(Option<&LogHead>) -> bool,
) -> Result<String, Misfit> {
    if review.reviewer != caller {
        return Err(Misfit::NotYou { signed: review.reviewer.clone(), caller: caller.to_owned() });
    }
    let key = reviewers.verify(caller, text, armour)?;
    let is_own = |(name, key): &(String, String)| caller == name || reviewers.are_one(caller, name, key);
    if subject.operators.iter().any(is_own) {
        return Err(Misfit::OwnSession(caller.to_owned()));
    }
    if [review.session, review.host_id, review.stream] != subject.ids {
        return Err(Misfit::OtherSession);
    }
    if !subject.closed {
        return Err(Misfit::StillOpen);
    }
    let (now, hash) = subject.head;
    if (review.last_frame, review.last_hash) != (now, hash) {
        return Err(Misfit::StaleHead { reviewed: review.last_frame, now });
    }
    match log(review.log.as_ref()) {
        true => Ok(key),
        false => Err(Misfit::OtherLog),
    }
}

#[cfg(test)]
mod tests {
    use breakglass_proof::REVIEW_NAMESPACE;
    use breakglass_proof::review::Verdict;
    use ssh_key::private::Ed25519Keypair;
    use ssh_key::{HashAlg, LineEnding, PrivateKey};

    use super::*;

    fn key(seed: u8) -> PrivateKey {
        Ed25519Keypair::from_seed(&[seed; 32]).into()
    }

    fn review() -> Review {
        Review {
            session: [1; 16],
            host_id: [2; 16],
            stream: [3; 16],
            last_frame: 9,
            last_hash: [4; 32],
            log: None,
            reviewer: "rita".into(),
            verdict: Verdict::Ok,
            note: String::new(),
            client_time: "2026-01-31T23:59:59Z".into(),
        }
    }

    fn subject() -> Subject {
        let operator_key = key(b'a').fingerprint(HashAlg::Sha256).to_string();
        Subject {
            ids: [[1; 16], [2; 16], [3; 16]],
            closed: true,
            head: (9, [4; 32]),
            operators: vec![("alice@example.org".into(), operator_key)],
        }
    }

    /// Judges a review that `signer` signed and `caller` hands in.
    fn code(review: &Review, signer: u8, caller: &str, subject: &Subject) -> &'static str {
        let text = review.encode().unwrap();
        let signature = key(signer).sign(REVIEW_NAMESPACE, HashAlg::Sha512, text.as_bytes()).unwrap();
        let armour = signature.to_pem(LineEnding::LF).unwrap();
        let line = |names: &str, seed| format!("{names} {}\n", key(seed).public_key().to_openssh().unwrap());
        let list = [
            line("rita", b'r'),
            line("alice", b'a'),
            // The operator once more, under another name and with another key; and a key that is shared.
            line("al", b'b'),
            line("al", b'a'),
            line("sam,alice@example.org", b's'),
        ];
        let reviewers = Reviewers::parse(&list.concat());
        let known = LogHead { origin: "log".into(), size: 3, root: [0; 32] };
        let log = |head: Option<&LogHead>| head.is_none_or(|head| *head == known);
        let judged = judge(review, (text.as_bytes(), armour.as_bytes()), caller, subject, &reviewers, log);
        judged.map_or_else(|misfit| misfit.code(), |_| "counts")
    }

    #[test]
    fn only_somebody_elses_review_of_all_that_is_recorded_counts() {
        let good = review();
        let named = |name: &str| Review { reviewer: name.into(), ..review() };
        let head = |size| Some(LogHead { origin: "log".into(), size, root: [0; 32] });
        assert_eq!(code(&good, b'r', "rita", &subject()), "counts");
        assert_eq!(code(&Review { verdict: Verdict::Concern, ..review() }, b'r', "rita", &subject()), "counts");
        assert_eq!(code(&Review { log: head(3), ..review() }, b'r', "rita", &subject()), "counts");
        for (review, signer, caller, expected) in [
            (good.clone(), b'r', "mallory", "not-you"),
            (good.clone(), b'e', "rita", "bad-signature"),
            (good.clone(), b'a', "rita", "bad-signature"),
            (named("alice"), b'a', "alice", "own-session"),
            (named("al"), b'b', "al", "own-session"),
            (named("sam"), b's', "sam", "own-session"),
            (Review { session: [7; 16], ..review() }, b'r', "rita", "other-session"),
            (Review { host_id: [7; 16], ..review() }, b'r', "rita", "other-session"),
            (Review { stream: [7; 16], ..review() }, b'r', "rita", "other-session"),
            (Review { last_frame: 8, ..review() }, b'r', "rita", "stale-head"),
            (Review { last_hash: [7; 32], ..review() }, b'r', "rita", "stale-head"),
            (Review { log: head(4), ..review() }, b'r', "rita", "other-log"),
        ] {
            assert_eq!(code(&review, signer, caller, &subject()), expected, "{review:?}");
        }
        assert_eq!(code(&good, b'r', "rita", &Subject { closed: false, ..subject() }), "still-open");
        let with = |name: &str, key: &str| {
            let joined = (name.to_owned(), key.to_owned());
            Subject { operators: [subject().operators, vec![joined]].concat(), ..subject() }
        };
        assert_eq!(code(&good, b'r', "rita", &with("bob", "SHA256:other")), "counts");
        assert_eq!(code(&good, b'r', "rita", &with("rita", "")), "own-session", "she extended it");
        let key = key(b'r').fingerprint(HashAlg::Sha256).to_string();
        assert_eq!(code(&good, b'r', "rita", &with("bob", &key)), "own-session", "and so she did under another name");
    }
}
