//! Argument vectors as a shell line: harmless to look at, and what it says when pasted.

use super::safe;

/// Words that a shell would not take as the name of a program.
const RESERVED: &[&str] = &[
    "!", "[[", "]]", "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in",
    "select", "then", "time", "until", "while", "{", "}",
];

/// The arguments quoted for bash, separated by spaces. Text that needs no quoting is left alone, other printable text is put
/// into single quotes, and whatever [`safe::is_plain`] refuses is written byte by byte in `$'…'`, so that nothing is lost.
pub fn line<A: AsRef<[u8]>>(argv: &[A]) -> String {
    let mut out = String::new();
    for (position, argument) in argv.iter().enumerate() {
        if position > 0 {
            out.push(' ');
        }
        word(&mut out, argument.as_ref(), position == 0);
    }
    out
}

fn word(out: &mut String, bytes: &[u8], first: bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_bare(text, first) => out.push_str(text),
        Ok(text) if text.chars().all(safe::is_plain) => single(out, text),
        _ => escaped(out, bytes),
    }
}

fn is_bare(text: &str, first: bool) -> bool {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || "_@%+:,./-".contains(c);
    // An `=` in the first word makes it an assignment, and one at a word's beginning is zsh's.
    let fits = |c: char| ordinary(c) || (c == '=' && !first);
    let special = text.is_empty() || text.starts_with('=') || (first && RESERVED.contains(&text));
    !special && text.chars().all(fits)
}

fn single(out: &mut String, text: &str) {
    out.push('\'');
    out.push_str(&text.replace('\'', "'\\''"));
    out.push('\'');
}

fn escaped(out: &mut String, bytes: &[u8]) {
    out.push_str("$'");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                '\'' => out.push_str("\\'"),
                c if safe::is_plain(c) => out.push(c),
                // Bytes, not \u: what bash makes of \u depends on its locale.
                c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| safe::push_byte(out, b)),
            }
        }
        chunk.invalid().iter().for_each(|b| safe::push_byte(out, *b));
    }
    out.push('\'');
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_only_where_needed() {
        let table: &[(&[&[u8]], &str)] = &[
            (&[b"ls", b"-la", b"/var/log"], "ls -la /var/log"),
            (&[b"dd", b"if=/dev/zero"], "dd if=/dev/zero"),
            (&[b"A=1", b"x"], "'A=1' x"),
            (&[b"if"], "'if'"),
            (&[b"echo", b""], "echo ''"),
            (&[b"echo", b"it's $HOME"], "echo 'it'\\''s $HOME'"),
            (&[b"~"], "'~'"),
            (&[b"printf", b"a\nb\x1b[0m\xff'\\"], "printf $'a\\nb\\x1b[0m\\xff\\'\\\\'"),
            (&["\u{202e}a".as_bytes()], "$'\\xe2\\x80\\xaea'"),
            (&["größe".as_bytes()], "'größe'"),
            (&[], ""),
        ];
        for (argv, shown) in table {
            assert_eq!(line(argv), *shown);
        }
    }

    /// What bash takes the line to mean: its arguments, each ended by a NUL.
    fn understood(argv: &[Vec<u8>]) -> Vec<u8> {
        let script = format!("printf '%s\\0' {}", line(argv));
        let output = Command::new("bash").args(["--norc", "-c", &script]).env_remove("BASH_ENV").output();
        output.expect("bash runs").stdout
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn a_pasted_line_means_the_same(
            bytes in proptest::collection::vec(proptest::collection::vec(1..=255u8, 0..40), 1..5),
            strings in proptest::collection::vec("[^\0]*", 1..5),
        ) {
            let strings: Vec<Vec<u8>> = strings.into_iter().map(String::into_bytes).collect();
            for argv in [bytes, strings] {
                let wanted: Vec<u8> = argv.iter().flat_map(|a| a.iter().copied().chain([0])).collect();
                prop_assert_eq!(understood(&argv), wanted);
                prop_assert!(line(&argv).chars().all(safe::is_plain));
            }
        }
    }
}
