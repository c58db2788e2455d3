use super::*;
use proptest::prelude::*;

/// Puts BTF together, type by type.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.types.extend_from_slice(&word.to_le_bytes()));
    }

    fn ty(&mut self, name: &str, kind: u32, len: u32, flag: bool, size_or_type: u32) -> u32 {
        let name = self.name(name);
        self.words(&[name, u32::from(flag) << 31 | kind << 24 | len, size_or_type]);
        self.count += 1;
        self.count
    }

    fn int(&mut self, size: u32) -> u32 {
        self.int_of_bits(size, size * 8)
    }

    fn int_of_bits(&mut self, size: u32, bits: u32) -> u32 {
        let id = self.ty("int", KIND_INT, 0, false, size);
        self.words(&[bits]);
        id
    }

    fn compound(&mut self, name: &str, kind: u32, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let id = self.ty(name, kind, members.len() as u32, false, size);
        for (member, ty, bits) in members {
            let name = self.name(member);
            self.words(&[name, *ty, *bits]);
        }
        id
    }

    fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [HEADER_LEN as u32, 0, types, types, strings] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}

/// A struct with everything that the search has to get through.
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int(4);
    let word = b.int(8);
    let pointer = b.ty("", KIND_PTR, 0, false, 0);
    let inner = b.compound("", KIND_STRUCT, 8, &[("hash", int, 0), ("len", int, 32)]);
    let union = b.compound("", KIND_UNION, 8, &[("", inner, 0), ("both", word, 0)]);
    let named = b.compound("named", KIND_STRUCT, 16, &[("first", int, 0), ("inum", int, 64)]);
    let constant = b.ty("", KIND_CONST, 0, false, named);
    let alias = b.ty("alias", KIND_TYPEDEF, 0, false, constant);
    let array = b.ty("", KIND_ARRAY, 0, false, 0);
    b.words(&[named, int, 3]);
    let narrow = b.int_of_bits(4, 3);
    b.compound(
        "outer",
        KIND_STRUCT,
        96,
        &[
            ("a", int, 0),
            ("", union, 64),
            ("ns", alias, 128),
            ("many", array, 256),
            ("pointer", pointer, 640),
            ("old_bits", narrow, 704),
        ],
    );
    let id = b.ty("flagged", KIND_STRUCT, 2, true, 8);
    for (name, position) in [("plain", 32), ("bits", 3 << 24 | 5)] {
        let name = b.name(name);
        b.words(&[name, int, position]);
    }
    assert!(id > 0);
    b.build()
}

fn offset(btf: &Btf, path: &str) -> (u32, u32) {
    let member = btf.member("outer", path).unwrap();
    (member.offset, member.size)
}

#[test]
fn members_are_found_through_anonymous_ones_typedefs_and_arrays() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(offset(&btf, "a"), (0, 4));
    assert_eq!(offset(&btf, "hash"), (8, 4));
    assert_eq!(offset(&btf, "len"), (12, 4));
    assert_eq!(offset(&btf, "both"), (8, 8));
    assert_eq!(offset(&btf, "ns"), (16, 16));
    assert_eq!(offset(&btf, "ns.inum"), (24, 4));
    assert_eq!(offset(&btf, "many"), (32, 48));
    assert_eq!(offset(&btf, "many.inum"), (40, 4));
    assert_eq!(offset(&btf, "pointer"), (80, 8));
    assert_eq!(btf.member("flagged", "plain").unwrap(), Member { offset: 4, size: 4 });
}

#[test]
fn what_is_not_there_names_itself() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.member("missing", "a").unwrap_err().to_string(), "this kernel has no struct missing");
    let message = btf.member("outer", "ns.gone").unwrap_err().to_string();
    assert_eq!(message, "this kernel's struct outer has no member gone");
    assert!(matches!(btf.member("outer", "pointer.x"), Err(BtfError::NoMember { .. })));
}

#[test]
fn bit_fields_of_both_encodings_are_refused() {
    let btf = Btf::parse(sample()).unwrap();
    assert!(matches!(btf.member("outer", "old_bits"), Err(BtfError::Bitfield { .. })));
    assert!(matches!(btf.member("flagged", "bits"), Err(BtfError::Bitfield { .. })));
}

#[test]
fn structs_of_one_name_must_agree_where_they_have_the_member() {
    let mut b = Builder::new();
    let int = b.int(4);
    b.compound("s", KIND_STRUCT, 8, &[("a", int, 0), ("b", int, 32)]);
    b.compound("s", KIND_STRUCT, 8, &[("a", int, 0), ("c", int, 32)]);
    b.compound("s", KIND_STRUCT, 12, &[("x", int, 0), ("c", int, 64)]);
    let btf = Btf::parse(b.build()).unwrap();
    assert_eq!(btf.member("s", "a").unwrap().offset, 0);
    assert_eq!(btf.member("s", "b").unwrap().offset, 4);
    assert!(matches!(btf.member("s", "c"), Err(BtfError::Ambiguous { .. })));
    assert!(matches!(btf.member("s", "d"), Err(BtfError::NoMember { .. })));
}

#[test]
fn members_where_none_can_be_are_damage() {
    let mut b = Builder::new();
    let int = b.int(4);
    b.compound("overlapping", KIND_STRUCT, 8, &[("a", int, 0), ("b", int, 16)]);
    b.compound("beyond", KIND_STRUCT, 8, &[("a", int, 0), ("b", int, 64)]);
    b.compound("twice", KIND_STRUCT, 8, &[("b", int, 0), ("b", int, 32)]);
    let union = b.compound("", KIND_UNION, 8, &[("a", int, 0), ("b", int, 32)]);
    b.compound("shifted", KIND_STRUCT, 8, &[("", union, 0)]);
    let btf = Btf::parse(b.build()).unwrap();
    for structure in ["overlapping", "beyond", "twice", "shifted"] {
        assert!(matches!(btf.member(structure, "b"), Err(BtfError::Damaged { .. })), "{structure}");
    }
    assert_eq!(btf.member("beyond", "a").unwrap().offset, 0);
}

#[test]
fn a_cut_file_is_an_error_at_every_length() {
    let whole = sample();
    for len in 0..whole.len() {
        assert!(Btf::parse(whole[..len].to_vec()).is_err(), "{len}");
    }
}

#[test]
fn an_unknown_kind_ends_the_walk() {
    let mut b = Builder::new();
    b.int(4);
    b.ty("new", 30, 0, false, 0);
    assert!(matches!(Btf::parse(b.build()), Err(BtfError::UnknownKind { kind: 30 })));
}

#[test]
fn types_that_lead_in_circles_end() {
    let mut b = Builder::new();
    b.ty("", KIND_CONST, 0, false, 1);
    b.compound("s", KIND_STRUCT, 8, &[("", 1, 0), ("x", 1, 0)]);
    b.compound("t", KIND_STRUCT, 8, &[("", 3, 0)]);
    let btf = Btf::parse(b.build()).unwrap();
    assert!(matches!(btf.member("s", "x"), Err(BtfError::Damaged { .. })));
    assert!(matches!(btf.member("t", "x"), Err(BtfError::Damaged { .. })));
}

/// A struct without holes, and where its members are. Damage to one word of it cannot pass for another layout.
fn dense() -> (Vec<u8>, Vec<(&'static str, Member)>) {
    let mut b = Builder::new();
    let int = b.int(4);
    let word = b.int(8);
    let short = b.int(2);
    let pointer = b.ty("", KIND_PTR, 0, false, 0);
    let inner = b.compound("", KIND_STRUCT, 8, &[("hash", int, 0), ("len", int, 32)]);
    let union = b.compound("", KIND_UNION, 8, &[("", inner, 0), ("both", word, 0)]);
    let named = b.compound("named", KIND_STRUCT, 8, &[("first", int, 0), ("inum", int, 32)]);
    let alias = b.ty("alias", KIND_TYPEDEF, 0, false, named);
    let members = [
        ("pid", int, 0),
        ("tgid", int, 32),
        ("", union, 64),
        ("ns", alias, 128),
        ("cred", pointer, 192),
        ("rows", short, 256),
        ("cols", short, 272),
        ("flags", int, 288),
    ];
    b.compound("outer", KIND_STRUCT, 40, &members);
    let at = |offset, size| Member { offset, size };
    let known = vec![
        ("pid", at(0, 4)),
        ("tgid", at(4, 4)),
        ("len", at(12, 4)),
        ("ns.inum", at(20, 4)),
        ("cred", at(24, 8)),
        ("cols", at(34, 2)),
        ("flags", at(36, 4)),
    ];
    (b.build(), known)
}

/// What the resolver makes of damaged information: the right place, or an error. As in `offsets.rs`, a size that is not the expected
/// one is an error.
fn check_damaged(bytes: Vec<u8>, known: &[(&'static str, Member)]) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for (path, right) in known {
        if let Ok(found) = btf.member("outer", path)
            && found.size == right.size
        {
            assert_eq!(found, *right, "{path}");
        }
    }
}

/// Every bit of every byte, and every byte to values that mean something. The corpus of the randomised test below.
#[test]
fn one_damaged_byte_is_an_error_or_no_matter() {
    let (whole, known) = dense();
    check_damaged(whole.clone(), &known);
    for at in 0..whole.len() {
        for value in
            (0..8).map(|bit| whole[at] ^ (1 << bit)).chain([0, 1, 0x7f, 0x80, 0xff, b'a', b'e', b'n', b'p', b't'])
        {
            let mut damaged = whole.clone();
            damaged[at] = value;
            check_damaged(damaged, &known);
        }
    }
}

#[test]
fn the_running_kernels_information_cut_or_damaged_is_never_taken_for_another_layout() {
    let Ok(whole) = std::fs::read(VMLINUX) else {
        eprintln!("skipped: this kernel shows no type information");
        return;
    };
    for part in 1..20 {
        assert!(Btf::parse(whole[..whole.len() * part / 20].to_vec()).is_err());
    }
    // Types after the damage shift or lose their names; the struct itself must not.
    let right = Btf::parse(whole.clone()).unwrap().member("task_struct", "tgid").unwrap();
    for part in 1..20 {
        let mut damaged = whole.clone();
        let at = damaged.len() * part / 20;
        damaged[at..at + 64].fill(0xa5);
        if let Ok(btf) = Btf::parse(damaged)
            && let Ok(found) = btf.member("task_struct", "tgid")
        {
            assert_eq!(found, right, "at {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn one_damaged_word_is_an_error_or_no_matter(at in any::<prop::sample::Index>(), value in prop_oneof![0..600_u32, any::<u32>()]) {
        let (mut bytes, known) = dense();
        let words = bytes.len() / 4;
        let at = at.index(words) * 4;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        check_damaged(bytes, &known);
    }

    #[test]
    fn damage_never_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = sample();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(btf) = Btf::parse(bytes) {
            for path in ["a", "len", "ns.inum", "many.inum", "pointer", "old_bits"] {
                let _ = btf.member("outer", path);
            }
        }
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = MAGIC.to_le_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        let _ = Btf::parse(framed);
    }
}
