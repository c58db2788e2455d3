use proptest::prelude::*;

use super::*;

/// The example of c2sp.org/signed-note.
const SPEC_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const SPEC_NOTE: &str = "This is an example message.\n\n— example.com/foo \
    Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

fn checkpoint(key: &NoteKey, size: u64) -> SignedCheckpoint {
    SignedCheckpoint::sign(key, size, Hash([7; 32])).unwrap()
}

#[test]
fn the_example_of_the_specification_verifies() {
    let key: VerifierKey = SPEC_KEY.parse().unwrap();
    let note = Note::from_bytes(SPEC_NOTE.as_bytes()).unwrap();
    assert!(note.verify(&VerifierList::new(vec![Box::new(key.clone())])).is_ok());
    assert_eq!(key.to_string(), SPEC_KEY);
    assert!(SignedCheckpoint::parse(SPEC_NOTE.as_bytes()).is_err(), "a note without size and root is no checkpoint");
}

#[test]
fn keys_round_trip_and_say_what_is_wrong_with_them() {
    for kind in [KeyType::Note, KeyType::Cosignature] {
        let key = NoteKey::generate("log.example/1", kind).unwrap();
        assert_eq!(key.public().to_string().parse::<VerifierKey>().unwrap(), *key.public());
        let again = NoteKey::from_secret(&key.to_secret()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(format!("{key:?}"), format!("private key of {}", key.public()));
    }
    let error = |text: &str| text.parse::<VerifierKey>().unwrap_err();
    assert_eq!(error("foo"), KeyError::Form(VKEY_FORM));
    assert_eq!(error(&SPEC_KEY.replace("530d", "530e")), KeyError::Id("example.com/foo".into()));
    assert_eq!(error(&SPEC_KEY.replace("foo+", "fox+")), KeyError::Id("example.com/fox".into()));
    assert_eq!(error(&SPEC_KEY.to_uppercase()), error(&SPEC_KEY.to_uppercase()));
    assert!(matches!(error(&SPEC_KEY.replace("example", "ex ample")), KeyError::Name(_)));
    // All zeros is a point of small order: anybody could sign for it.
    let weak = format!("weak+00000000+{}", BASE64.encode([&[1][..], &[0; 32]].concat()));
    assert_eq!(error(&weak), KeyError::Weak("weak".into()));
    let quantum = format!("q+00000000+{}", BASE64.encode([&[6][..], &[1; 32]].concat()));
    assert_eq!(error(&quantum), KeyError::Type("q".into(), 6));
    for name in ["", "a b", "a+b", "a\nb", "a\u{a0}b", "a\u{7}b", &"a".repeat(NAME_MAX + 1)] {
        assert!(NoteKey::generate(name, KeyType::Note).is_err(), "{name:?}");
    }
}

#[test]
fn a_checkpoint_verifies_with_its_key_alone() {
    let key = NoteKey::generate("log.example", KeyType::Note).unwrap();
    let same_name = NoteKey::generate("log.example", KeyType::Note).unwrap();
    let signed = checkpoint(&key, 12);
    let parsed = SignedCheckpoint::parse(&signed.to_bytes()).unwrap();
    assert_eq!((parsed.origin(), parsed.size(), parsed.root()), ("log.example", 12, Hash([7; 32])));
    parsed.verify(&[same_name.public().clone(), key.public().clone()]).unwrap();
    assert!(parsed.verify(&[same_name.public().clone()]).is_err());
    assert!(parsed.verify(&[]).is_err());
    let other = String::from_utf8(signed.to_bytes()).unwrap().replace("\n12\n", "\n13\n");
    assert!(SignedCheckpoint::parse(other.as_bytes()).unwrap().verify(&[key.public().clone()]).is_err());
}

#[test]
fn a_cosignature_says_its_time_and_covers_it() {
    let log = NoteKey::generate("log.example", KeyType::Note).unwrap();
    let witness = NoteKey::generate("w.example", KeyType::Cosignature).unwrap();
    let signed = checkpoint(&log, 12);
    let signature = witness.sign(signed.text(), 1_700_000_000).unwrap();
    let bytes = signature.signature();
    assert_eq!(witness.public().cosigned_at(signed.text(), bytes), Some(1_700_000_000));
    assert_eq!(bytes.len(), 72);
    let mut later = bytes.to_vec();
    later[7] ^= 1;
    assert_eq!(witness.public().cosigned_at(signed.text(), &later), None);
    assert_eq!(witness.public().cosigned_at(signed.text(), &bytes[..71]), None);
    // A log's key makes no cosignatures, and no time is no time.
    assert_eq!(log.public().cosigned_at(signed.text(), bytes), None);
    let untimed = witness.sign(signed.text(), 0).unwrap();
    assert_eq!(witness.public().cosigned_at(signed.text(), untimed.signature()), None);
}

#[test]
fn sixteen_signatures_are_taken_and_too_long_a_note_is_not() {
    let key = NoteKey::generate("log.example", KeyType::Note).unwrap();
    let mut note = checkpoint(&key, 1).to_bytes();
    let stranger = Signature::new("stranger.example".into(), 5, vec![0; 4900]).unwrap().to_bytes();
    (0..15).for_each(|_| note.extend(&stranger));
    let parsed = SignedCheckpoint::parse(&note).unwrap();
    parsed.verify(&[key.public().clone()]).unwrap();
    (0..5).for_each(|_| note.extend(&stranger));
    assert!(matches!(SignedCheckpoint::parse(&note), Err(CheckpointError::TooLong)));
}

proptest! {
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = SignedCheckpoint::parse(&noise);
        let text = String::from_utf8_lossy(&noise);
        let _ = text.parse::<VerifierKey>();
        let _ = NoteKey::from_secret(&text);
        let key: VerifierKey = SPEC_KEY.parse().unwrap();
        prop_assert!(!key.verify(&noise, &noise));
    }

    #[test]
    fn what_looks_like_a_checkpoint_never_panics(
        origin in "[a-z. ]{0,10}", size in "[0-9+-]{0,22}", root in "[A-Za-z0-9+/=]{0,50}", more in "[a-z\n]{0,20}",
        lines in prop::collection::vec("— [a-z+ ]{0,6} ?[A-Za-z0-9+/]{0,100}={0,2}", 0..5),
    ) {
        let note = format!("{origin}\n{size}\n{root}\n{more}\n{}\n", lines.join("\n"));
        if let Ok(parsed) = SignedCheckpoint::parse(note.as_bytes()) {
            prop_assert_eq!(parsed.size().to_string(), size);
            prop_assert_eq!(SignedCheckpoint::parse(&parsed.to_bytes()).unwrap().to_bytes(), parsed.to_bytes());
        }
    }

    /// Any change of a signed note breaks it, or leaves the same checkpoint.
    #[test]
    fn a_flipped_bit_is_noticed(place: prop::sample::Index, bit in 0_u8..8) {
        let key = NoteKey::generate("log.example", KeyType::Note).unwrap();
        let signed = checkpoint(&key, 1234);
        let mut note = signed.to_bytes();
        let place = place.index(note.len());
        note[place] ^= 1 << bit;
        let verified = SignedCheckpoint::parse(&note).is_ok_and(|parsed| parsed.verify(&[key.public().clone()]).is_ok());
        prop_assert!(!verified);
    }
}
