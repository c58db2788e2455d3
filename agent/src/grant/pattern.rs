//! Pattern lists as OpenSSH matches them: `ssh_config(5)`, PATTERNS.

/// Whether `text` matches a comma-separated list of patterns: at least one of them, and none that begins with `!`.
pub fn list_matches(list: &str, text: &str) -> bool {
    let mut found = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(negated) if matches(negated, text) => return false,
            Some(_) => {}
            None => found |= matches(pattern, text),
        }
    }
    found
}

/// `*` stands for any number of characters, `?` for one. Case matters. Time is at most the product of both lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when the characters after the latest star do not fit: behind the star, one character further.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t + 1));
                p += 1;
                continue;
            }
            Some(c) if *c == b'?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((star, from)) = retry else { return false };
        (p, t) = (star, from);
        retry = Some((star, from + 1));
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_openssh_does() {
        for (list, text, expected) in [
            ("alice", "alice", true),
            ("alice", "Alice", false),
            ("alice", "alice2", false),
            ("*@example.org", "alice@example.org", true),
            ("*@example.org", "alice@example.org.evil", false),
            ("*@example.org", "@example.org", true),
            ("al?ce", "alice", true),
            ("al?ce", "alce", false),
            ("bob,alice", "alice", true),
            ("*,!alice", "alice", false),
            ("!alice,*", "alice", false),
            ("!alice", "bob", false),
            ("*", "", true),
            ("", "alice", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
            ("**", "x", true),
        ] {
            assert_eq!(list_matches(list, text), expected, "{list:?} {text:?}");
        }
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        assert!(!matches(&"*a".repeat(500), &"b".repeat(5000)));
    }

    fn simple(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) if simple(rest, text) => true,
            (Some((b'*', _)), Some((_, tail))) => simple(pattern, tail),
            (Some((c, rest)), Some((d, tail))) if *c == b'?' || c == d => simple(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn equals_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), simple(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
