//! Whatever a file holds, verifying it ends with a verdict.

use breakglass_cli::evidence::{report::Verdict, verify::Verifier};
use proptest::prelude::*;

use super::forge::{Parts, recorded};

fn verdict(bytes: &[u8]) -> Verdict {
    Verifier::new(vec![recorded(1).host_key()]).run(bytes).unwrap().verdict()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_broken(bytes in proptest::collection::vec(any::<u8>(), 0..2000), keep in 0usize..9000) {
        let good = Parts::of(&recorded(1)).file();
        prop_assert_eq!(verdict(&bytes), Verdict::Broken);
        prop_assert_eq!(verdict(&[&good[..keep.min(good.len() - 1)], &bytes].concat()), Verdict::Broken);
    }

    /// Any change of anything but the manifest, by somebody who makes the digest anew.
    #[test]
    fn a_changed_part_is_broken(which in 0usize..3, at: prop::sample::Index, byte: prop::sample::Index, flip in 1u8..) {
        let mut parts = Parts::of(&recorded(1));
        let list = [&mut parts.links, &mut parts.checkpoints, &mut parts.frames].into_iter().nth(which).unwrap();
        let part = at.get_mut(list);
        *byte.get_mut(part) ^= flip;
        prop_assert_eq!(verdict(&parts.file()), Verdict::Broken);
    }
}
