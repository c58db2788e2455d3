//! Whether somebody else has reviewed the session: the check `review`.

use breakglass_api::{evidence::Section, frame::Hash};
use breakglass_proof::{
    REVIEW_NAMESPACE,
    review::{LogHead, Review, split},
    sshsig::Armoured,
};
use serde::Serialize;

use super::{
    logged::Outcome,
    report::{Place, State},
    trust::Trust,
};

/// Reviews that are looked at, of some 2 KiB each.
const REVIEWS_MAX: usize = 64;

/// What a review must be about.
pub struct Subject<'a> {
    /// Session, host and stream of the manifest.
    pub ids: [[u8; 16]; 3],
    /// The last frame of the file and its hash.
    pub last: (u64, Option<Hash>),
    /// The hash of a frame as the host signed it.
    pub claimed: &'a dyn Fn(u64) -> Option<Hash>,
    /// Who opened the session and who extended it, each with the fingerprint of the key; empty where the frames do not tell.
    pub operators: &'a [(String, String)],
}

/// A review that was signed, for the report.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// Who.
    pub reviewer: String,
    /// The fingerprint of their key.
    pub key: String,
    /// `ok` or `concern`.
    pub verdict: &'static str,
    /// In words.
    pub note: String,
    /// The last frame that they saw.
    pub last_frame: u64,
    /// Their clock.
    pub client_time: String,
}

/// The reviews in a file.
#[derive(Default)]
pub struct Reviewed {
    sections: Vec<(u64, Vec<u8>)>,
    /// Those that hold.
    pub told: Vec<Told>,
    /// The log as those reviewers saw it, each at the offset of the review.
    pub seen: Vec<(u64, LogHead)>,
}

impl Reviewed {
    /// Keeps one for the end.
    pub fn take(&mut self, section: &Section) -> Result<(), Outcome> {
        if self.sections.len() >= REVIEWS_MAX {
            return Err((State::Failed, Place::byte(section.offset), format!("more than {REVIEWS_MAX} reviews")));
        }
        self.sections.push((section.offset, section.content.clone()));
        Ok(())
    }

    /// The check `review`.
    pub fn conclude(&mut self, subject: &Subject<'_>, trust: &Trust) -> Outcome {
        for (offset, signed) in std::mem::take(&mut self.sections) {
            match review(&signed, subject, trust) {
                Ok((review, key)) => {
                    self.seen.extend(review.log.clone().map(|head| (offset, head)));
                    self.told.push(Told {
                        reviewer: review.reviewer,
                        key,
                        verdict: review.verdict.word(),
                        note: review.note,
                        last_frame: review.last_frame,
                        client_time: review.client_time,
                    });
                }
                Err(detail) => return (State::Failed, Place::byte(offset), detail),
            }
        }
        let unproved = |detail: String| (State::Unproved, Place::default(), detail);
        let Some(latest) = self.told.iter().max_by_key(|told| told.last_frame) else {
            return unproved("nobody has signed a review of it".to_owned());
        };
        let Told { reviewer, key, verdict, last_frame, .. } = latest;
        if trust.reviewers.is_none() {
            return unproved(format!(
                "{reviewer} signed \"{verdict}\" with the key {key}; whether it is theirs is for you to compare: give --reviewers"
            ));
        }
        match *last_frame >= subject.last.0 {
            true => {
                (State::Passed, Place::default(), format!("{reviewer} signed \"{verdict}\" up to frame {last_frame}"))
            }
            false => unproved(format!("{reviewer} reviewed it up to frame {last_frame}; what came later nobody has")),
        }
    }
}

/// Checks one review; returns it with the fingerprint of its key.
fn review(signed: &[u8], subject: &Subject<'_>, trust: &Trust) -> Result<(Review, String), String> {
    let (text, armour) = split(signed).ok_or("a review without a signature")?;
    let review = Review::parse(text).map_err(|error| error.to_string())?;
    let by = format!("the review by {}", review.reviewer);
    if [review.session, review.host_id, review.stream] != subject.ids {
        return Err(format!("{by} is about another session"));
    }
    let key = match &trust.reviewers {
        Some(reviewers) => {
            reviewers.verify(&review.reviewer, text, armour).map_err(|error| format!("{by}: {error}"))?
        }
        None => {
            let signature = Armoured::parse(armour).map_err(|error| format!("{by}: {error}"))?;
            signature.verify(REVIEW_NAMESPACE, text).map_err(|error| format!("{by}: {error}"))?;
            signature.fingerprint()
        }
    };
    if subject.operators.iter().any(|(name, own)| review.reviewer == *name || key == *own) {
        return Err(format!("{by} is by an operator of it, about their own session"));
    }
    let claimed = (subject.claimed)(review.last_frame);
    let last = (subject.last.0 == review.last_frame).then_some(subject.last.1).flatten();
    match claimed.or(last) {
        Some(hash) if hash == review.last_hash => Ok((review, key)),
        Some(_) => Err(format!("{by} is about another frame {} than the file holds", review.last_frame)),
        None => Err(format!("{by} is about frame {}, which the file does not hold", review.last_frame)),
    }
}
