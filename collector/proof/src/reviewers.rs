//! Whose reviews count: a file in the form of OpenSSH's `allowed_signers`, one key a line.
//!
//! ```text
//! rita@example.org namespaces="breakglass-review@v1" ssh-ed25519 AAAA… comment
//! sam,sam@example.org ssh-ed25519 AAAA…
//! ```
//!
//! Names are whole, there are no patterns; the only option is `namespaces`, whose names are whole too. A line that says anything else
//! allows nothing and is reported: leaving one out can only keep a reviewer out. Empty lines and lines that begin with `#` say nothing.
//! `ssh-keygen -Y verify -f` reads the same file.

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};

use crate::REVIEW_NAMESPACE;
use crate::sshsig::{Armoured, SignatureError, check_type};

/// Largest file, bytes: ten thousand lines.
pub const FILE_MAX: usize = 2 << 20;

/// Reviewers and their keys.
#[derive(Clone, Debug, Default)]
pub struct Reviewers {
    entries: Vec<(Vec<String>, KeyData)>,
    problems: Vec<Problem>,
}

/// A line that allows nothing because it cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// Why a reviewer's signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The signature itself.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Nobody says that this key is that person's.
    #[error("the key {fingerprint} is not listed for {reviewer:?}")]
    Unlisted {
        /// Who it is said to be.
        reviewer: String,
        /// The key.
        fingerprint: String,
    },
}

impl Reviewers {
    /// Reads a whole file.
    pub fn parse(text: &str) -> Self {
        let mut reviewers = Self::default();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            match entry(text) {
                Ok(entry) => reviewers.entries.extend(entry),
                Err(message) => reviewers.problems.push(Problem { line, message }),
            }
        }
        reviewers
    }

    /// Whether no key is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Lines that allow nothing because they cannot be understood.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether a listed key of `reviewer` signed `text` as a review; returns the key's fingerprint.
    pub fn verify(&self, reviewer: &str, text: &[u8], armour: &[u8]) -> Result<String, Refused> {
        let signature = Armoured::parse(armour)?;
        signature.verify(REVIEW_NAMESPACE, text)?;
        let listed =
            |(names, key): &(Vec<String>, KeyData)| key == signature.key() && names.iter().any(|name| name == reviewer);
        let fingerprint = signature.fingerprint();
        match self.entries.iter().any(listed) {
            true => Ok(fingerprint),
            false => Err(Refused::Unlisted { reviewer: reviewer.to_owned(), fingerprint }),
        }
    }

    /// Whether a reviewer is that operator, as far as the file tells: a key of theirs is the operator's, or is listed under the operator's name.
    pub fn are_one(&self, reviewer: &str, operator: &str, operator_key: &str) -> bool {
        self.keys_of(reviewer).any(|key| {
            let listed = self.keys_of(operator).any(|other| other == key);
            listed || key.fingerprint(HashAlg::Sha256).to_string() == operator_key
        })
    }

    fn keys_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a KeyData> + 'a {
        let own = self.entries.iter().filter(move |(names, _)| names.iter().any(|other| other == name));
        own.map(|(_, key)| key)
    }
}

/// A usable line; none where it is for other namespaces.
fn entry(line: &str) -> Result<Option<(Vec<String>, KeyData)>, String> {
    let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
    let names = words.next().ok_or("it is empty")?;
    if names.contains(['*', '?', '!', '"']) {
        return Err("patterns and quotes are not taken: write whole names".to_owned());
    }
    let names: Vec<String> = names.split(',').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return Err("a name is empty".to_owned());
    }
    let mut word = words.next().ok_or("a key must follow the names")?;
    let mut applies = true;
    if let Some(list) = word.strip_prefix("namespaces=") {
        let list = list.strip_prefix('"').and_then(|list| list.strip_suffix('"'));
        let list = list.filter(|list| !list.contains(['*', '?', '!', '"']));
        let list = list.ok_or("namespaces: whole names in quotes are taken, and no other option beside it")?;
        applies = list.split(',').any(|namespace| namespace == REVIEW_NAMESPACE);
        word = words.next().ok_or("a key must follow the options")?;
    }
    let blob = words.next().ok_or("the only option is namespaces; then come the type of the key and the key")?;
    let key = PublicKey::from_openssh(&format!("{word} {blob}")).map_err(|error| format!("the {word} key: {error}"))?;
    check_type(key.key_data()).map_err(|error| error.to_string())?;
    Ok(applies.then(|| (names, key.key_data().clone())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // The public key of the first test vector of RFC 8032.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";

    #[test]
    fn lines_list_keys_or_say_why_not() {
        let text = format!(
            "# who\n\nrita,rita@example.org {KEY} at work\nsam\tnamespaces=\"file,breakglass-review@v1\" {KEY}\n\
             tom namespaces=\"git\" {KEY}\n"
        );
        let reviewers = Reviewers::parse(&text);
        assert_eq!(reviewers.problems(), []);
        for (name, keys) in [("rita", 1), ("rita@example.org", 1), ("sam", 1), ("tom", 0), ("rit", 0)] {
            assert_eq!(reviewers.keys_of(name).count(), keys, "{name}");
        }
        for bad in [
            "rita".to_owned(),
            "rita ssh-ed25519".to_owned(),
            "rita ssh-ed25519 AAAA".to_owned(),
            format!("*@example.org {KEY}"),
            format!("\"rita\" {KEY}"),
            format!("rita, {KEY}"),
            format!("rita cert-authority {KEY}"),
            format!("rita namespaces=\"breakglass-*\" {KEY}"),
            format!("rita namespaces=\"a\",valid-after=\"20260101\" {KEY}"),
        ] {
            let reviewers = Reviewers::parse(&format!("\n{bad}"));
            assert!(reviewers.is_empty() && reviewers.problems()[0].line == 2, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in ".{0,200}", options in "[a-z=\",*@! ]{0,40}") {
            Reviewers::parse(&text);
            Reviewers::parse(&format!("rita {options} {KEY}"));
        }
    }
}
