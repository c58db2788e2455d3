//! How a code looks, on paper and as it is typed.
//!
//! Twenty letters in groups of four: the first group tells which code it is, the other four are 64 random bits. The sixteen letters of the
//! alphabet look like no other, and lie on the same keys of the QWERTY, QWERTZ and AZERTY layouts, so that a console with the wrong
//! layout, which shows nothing of what is typed, still takes them. Case, blanks and hyphens do not matter.

use std::fmt;

/// Each letter is four bits.
const ALPHABET: &[u8; 16] = b"bcdefghjknprstux";

/// Letters of a code.
const LETTERS: usize = 20;

/// Longest input that is looked at, bytes: a code with room for blanks between its letters.
pub const INPUT_MAX: usize = 128;

/// A one-time code.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    letters: [u8; LETTERS],
}

impl Code {
    /// The code of ten random bytes: two for the mark, eight secret ones.
    pub fn new(random: [u8; LETTERS / 2]) -> Self {
        let mut letters = [0; LETTERS];
        for (pair, byte) in letters.chunks_exact_mut(2).zip(random) {
            for (letter, bits) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *letter = ALPHABET[usize::from(bits)];
            }
        }
        Self { letters }
    }

    /// Reads what was typed; `None` for what cannot be a code.
    pub fn parse(typed: &str) -> Option<Self> {
        if typed.len() > INPUT_MAX {
            return None;
        }
        let typed: Vec<u8> = typed
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace() && *byte != b'-')
            .map(|byte| byte.to_ascii_lowercase())
            .collect();
        let letters: [u8; LETTERS] = typed.try_into().ok()?;
        letters.iter().all(|letter| ALPHABET.contains(letter)).then_some(Self { letters })
    }

    /// The first group: which code it is. No secret.
    pub fn mark(&self) -> String {
        self.letters.iter().take(4).map(|letter| char::from(*letter)).collect()
    }

    /// The other groups, which must be kept secret.
    pub fn secret(&self) -> &[u8] {
        &self.letters[4..]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, letter) in self.letters.iter().enumerate() {
            if index > 0 && index % 4 == 0 {
                f.write_str("-")?;
            }
            fmt::Write::write_char(f, char::from(*letter))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({}-…)", self.mark())
    }
}

/// The sheet that is printed once.
pub fn sheet(host_name: &str, host_id: &str, account: &str, issued: &str, codes: &[(u32, Code)]) -> String {
    use fmt::Write as _;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "BREAKGLASS ONE-TIME CODES\n\nhost     {host_name}\nid       {host_id}\naccount  {account}");
    let _ = writeln!(text, "issued   {issued}\n\n  serial   code");
    for (serial, code) in codes {
        let _ = writeln!(text, "  {serial:>6}   {code}   [ ] used");
    }
    let _ = writeln!(
        text,
        "\nEach opens the host once. At the console: log in as {account} and give a code as the password.\n\
         Elsewhere: breakglass open {host_name} --code. Capitals, blanks and hyphens do not matter.\n\
         Keep this sheet sealed. Nobody can print these codes again; lost ones are replaced by:\n\
         breakglass-agent codes issue"
    );
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn however_it_is_typed() {
        let code = Code::new([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x00, 0xff]);
        assert_eq!(code.to_string(), "bcde-fghj-knpr-stux-bbxx");
        assert_eq!(code.mark(), "bcde");
        for typed in ["bcde-fghj-knpr-stux-bbxx", "BCDEFGHJKNPRSTUXBBXX", " bcde fghj knpr stux  bbxx\n"] {
            assert_eq!(Code::parse(typed), Some(code.clone()), "{typed}");
        }
        for bad in ["", "bcde", "bcde-fghj-knpr-stux-bbx", "bcde-fghj-knpr-stux-bbxxb", "acde-fghj-knpr-stux-bbxx"] {
            assert_eq!(Code::parse(bad), None, "{bad}");
        }
        assert!(!format!("{code:?}").contains("fghj"), "secrets do not get into logs");
    }

    #[test]
    fn the_sheet_says_where_and_how() {
        let code = Code::new([7; 10]);
        let text = sheet("web1", "host-1", "breakglass", "2026-01-31", &[(3, code.clone())]);
        assert!(text.contains("web1") && text.contains("     3   ") && text.contains(&code.to_string()));
    }

    proptest! {
        #[test]
        fn every_code_survives_paper(random: [u8; 10]) {
            let code = Code::new(random);
            prop_assert_eq!(Code::parse(&code.to_string()), Some(code));
        }

        #[test]
        fn noise_never_panics(typed in "\\PC{0,60}") {
            let _ = Code::parse(&typed);
        }
    }
}
