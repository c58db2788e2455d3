//! Whatever a file holds, verifying it ends with a verdict.

use breakglass_api::{evidence::kind, frame::Frame};
use breakglass_cli::evidence::{report::Verdict, trust::Trust, verify::Verifier};
use breakglass_proof::reviewers::Reviewers;
use proptest::prelude::*;

use super::{
    forge::{Parts, recorded},
    ledger::{Ledger, keys, review, reviewers, rita, signed},
};

/// Under everything that a reader can ask for.
fn verdict(bytes: &[u8]) -> Verdict {
    let trust = Trust {
        hosts: vec![recorded(1).host_key()],
        logs: vec![keys()[0].public().clone()],
        witnesses: vec![keys()[1].public().clone(), keys()[2].public().clone()],
        quorum: 2,
        earlier: None,
        reviewers: Some(Reviewers::parse(&reviewers())),
    };
    Verifier::new(trust).run(bytes).unwrap().verdict()
}

/// A file that holds everything that a file can.
fn whole() -> Parts {
    let host = recorded(1);
    let mut parts = Parts::of(&host);
    let ledger = Ledger::of(&host);
    let last = Frame::parse(parts.frames.last().unwrap()).unwrap();
    let review = review("rita", (last.header.seq, last.hash), Some(ledger.head()));
    parts.others.push((kind::REVIEW, signed(&review, &rita())));
    ledger.prove(&mut parts);
    parts.others.push((kind::CONSISTENCY, ledger.consistency(7)));
    parts
}

#[test]
fn what_the_noise_is_made_of_is_sound() {
    assert_eq!(verdict(&whole().file()), Verdict::Verified);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_broken(bytes in proptest::collection::vec(any::<u8>(), 0..2000), keep in 0usize..12000) {
        let good = whole().file();
        prop_assert_eq!(verdict(&bytes), Verdict::Broken);
        prop_assert_eq!(verdict(&[&good[..keep.min(good.len() - 1)], &bytes].concat()), Verdict::Broken);
    }

    /// Any change of anything but the manifest, by somebody who makes the digest anew.
    #[test]
    fn a_changed_part_is_broken(which in 0usize..4, at: prop::sample::Index, byte: prop::sample::Index, flip in 1u8..) {
        let mut parts = whole();
        let mut others: Vec<Vec<u8>> = parts.others.iter().map(|(_, content)| content.clone()).collect();
        let lists = [&mut parts.links, &mut parts.checkpoints, &mut parts.frames, &mut others];
        let list = lists.into_iter().nth(which).unwrap();
        let part = at.get_mut(list);
        *byte.get_mut(part) ^= flip;
        parts.others.iter_mut().zip(others).for_each(|((_, content), other)| *content = other);
        prop_assert_eq!(verdict(&parts.file()), Verdict::Broken);
    }
}
