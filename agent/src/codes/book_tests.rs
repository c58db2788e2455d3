use std::{fs, os::unix::fs::PermissionsExt};

use proptest::prelude::*;

use super::*;

const NOW: &str = "2026-01-31T23:59:59Z";

fn issued(count: usize) -> (tempfile::TempDir, Book, Vec<(u32, Code)>) {
    let dir = tempfile::tempdir().unwrap();
    let book = Book::new(dir.path());
    let codes = book.issue(count, false, NOW).unwrap();
    (dir, book, codes)
}

fn word<T>(result: Result<T, CodeError>) -> &'static str {
    result.err().map_or("ok", |error| error.code())
}

#[test]
fn good_once() {
    let (_dir, book, codes) = issued(3);
    assert_eq!(codes.iter().map(|(serial, _)| *serial).collect::<Vec<_>>(), [1, 2, 3]);
    let (serial, code) = &codes[1];
    let found = book.find(code).unwrap();
    assert_eq!((found.serial, found.left), (*serial, 2));
    let again = book.find(code).unwrap();
    book.burn(&found).unwrap();
    assert_eq!(word(book.burn(&again)), "used-code", "two at once");
    assert_eq!(word(book.find(code)), "used-code");
    assert_eq!(book.tally().unwrap(), Tally { issued: 3, left: 2 });
    assert_eq!(word(book.find(&codes[0].1)), "ok", "the others are as good as before");
}

#[test]
fn wrong_ones() {
    let (_dir, book, codes) = issued(1);
    let known = codes[0].1.to_string();
    let last = known.chars().next_back().unwrap();
    let wrong = format!("{}{}", &known[..known.len() - 1], if last == 'b' { 'c' } else { 'b' });
    assert_eq!(word(book.find(&Code::parse(&wrong).unwrap())), "bad-code");
    let stranger = Code::new(rand::random());
    if stranger.mark() != codes[0].1.mark() {
        assert_eq!(word(book.find(&stranger)), "bad-code");
    }
    assert_eq!(book.tally().unwrap().left, 1);
    assert_eq!(word(Book::new(Path::new("/nonexistent")).find(&stranger)), "no-codes");
}

#[test]
fn traps_in_their_place_are_not_waited_for() {
    for name in ["codes", "codes.lock"] {
        let (dir, book, codes) = issued(1);
        let found = book.find(&codes[0].1).unwrap();
        regular::tests::trap(&dir.path().join(name));
        assert_eq!(word(regular::tests::untrapped(move || book.burn(&found))), "codes-unusable", "{name}");
    }
}

#[test]
fn a_new_sheet_replaces_the_old_one_unless_told_to_keep() {
    let (_dir, book, old) = issued(2);
    book.burn(&book.find(&old[0].1).unwrap()).unwrap();
    let added = book.issue(1, true, NOW).unwrap();
    assert_eq!(added[0].0, 3, "serials are never used again");
    assert_eq!(book.tally().unwrap(), Tally { issued: 2, left: 2 });
    assert_eq!(word(book.find(&old[0].1)), "bad-code");
    assert_eq!(word(book.find(&old[1].1)), "ok");
    let found = book.find(&old[1].1).unwrap();
    let new = book.issue(1, false, NOW).unwrap();
    assert_eq!(word(book.find(&old[1].1)), "bad-code");
    assert_eq!(word(book.burn(&found)), "bad-code", "replaced between finding and burning");
    assert_eq!(word(book.find(&new[0].1)), "ok");
    for count in [0, CODES_MAX + 1] {
        assert_eq!(word(book.issue(count, false, NOW)), "codes-unusable");
    }
}

#[test]
fn nothing_of_a_code_is_at_rest() {
    let (_dir, book, codes) = issued(1);
    let text = fs::read_to_string(book.path()).unwrap();
    assert!(text.contains("$argon2id$v=19$m=7168,t=5,p=1$"), "{text}");
    for group in codes[0].1.to_string().split('-').skip(1) {
        assert!(
            !text.split([' ', '$', '\n']).any(|word| word.contains(&codes[0].1.to_string()) || word == group),
            "{text}"
        );
    }
    assert_eq!(fs::metadata(book.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn any_doubt_denies() {
    let (dir, book, codes) = issued(1);
    let good = fs::read_to_string(book.path()).unwrap();
    for bad in [
        String::new(),
        good.replace("v1", "v2"),
        good.trim_end().to_owned(),
        good.replace("- 1", "? 1"),
        good.replace("- 1 ", "- 1  "),
        good.replace("$argon2id", "argon2id"),
        format!("{good}\n"),
    ] {
        fs::write(book.path(), &bad).unwrap();
        assert_eq!(word(book.find(&codes[0].1)), "codes-unusable", "{bad:?}");
    }
    fs::write(book.path(), &good).unwrap();
    assert_eq!(word(book.find(&codes[0].1)), "ok");
    fs::set_permissions(book.path(), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(word(book.find(&codes[0].1)), "codes-unusable", "others could have read it");
    fs::set_permissions(book.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let moved = dir.path().join("moved");
    fs::rename(book.path(), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, book.path()).unwrap();
    assert_eq!(word(book.find(&codes[0].1)), "codes-unusable", "a link");
}

/// Whatever point the power fails at, a code is either used or not, and every other line is as it was.
#[test]
fn burning_changes_one_byte() {
    let (_dir, book, codes) = issued(3);
    let before = fs::read(book.path()).unwrap();
    book.burn(&book.find(&codes[2].1).unwrap()).unwrap();
    let after = fs::read(book.path()).unwrap();
    assert_eq!(before.len(), after.len());
    let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
    assert_eq!(changed, [(&UNUSED, &USED)]);
}

proptest! {
    #[test]
    fn noise_never_panics(text in "(breakglass-codes v1\n)?([-x] [0-9]{1,3} [a-z]{4} [0-9TZ:-]{0,20} [$a-z0-9=,]{0,30}\n?|\\PC{0,40}\n?){0,4}") {
        if let Ok(lines) = parse(&text) {
            for line in lines {
                prop_assert_eq!(Line::parse(&line.to_string()), Some(line));
            }
        }
    }
}
