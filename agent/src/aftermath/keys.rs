//! Who may log in over ssh: the server's configuration and the keys that it takes.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use breakglass_api::v1::left_behind::Category;
use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};

use super::{
    accounts::User,
    files::{Host, Place},
    lines::{container, plain},
    snapshot::{Item, Sink},
    text::shown,
    tree::{Read, joined, tree},
};

/// Configuration and host keys of the server and the client.
const FOLDER: &[u8] = b"/etc/ssh";
const SERVER_CONFIG: &[u8] = b"/etc/ssh/sshd_config";
const SERVER_DROP_INS: &[u8] = b"/etc/ssh/sshd_config.d";

/// Where sshd looks by default, below the home.
const DEFAULT_FILES: [&[u8]; 2] = [b".ssh/authorized_keys", b".ssh/authorized_keys2"];

/// Most configuration files that are read for directives; sshd stops at 16 levels.
const CONFIG_FILES_MAX: usize = 128;

/// Most files that the configuration may name.
const NAMED_FILES_MAX: usize = 256;

/// Users that are named with a key; beyond, they are counted.
const USERS_SHOWN: usize = 3;

/// Directives that name a file in which who may log in is decided.
const FILE_DIRECTIVES: [&[u8]; 6] = [
    b"trustedusercakeys",
    b"authorizedprincipalsfile",
    b"authorizedkeyscommand",
    b"authorizedprincipalscommand",
    b"revokedkeys",
    b"forcecommand",
];

/// Most patterns of `AuthorizedKeysFile` that are followed, each for every user.
const PATTERNS_MAX: usize = 16;

/// Where sshd looks unless it is told otherwise. Always compared: the telling may be undone later.
pub(super) fn default_patterns() -> Vec<Vec<u8>> {
    DEFAULT_FILES.iter().map(|file| file.to_vec()).collect()
}

/// Adds the configuration; returns the patterns of files with keys, as in `AuthorizedKeysFile`.
pub(super) fn configuration(host: &Host, sink: &mut Sink) -> Vec<Vec<u8>> {
    tree(host, sink, Category::Ssh, FOLDER, 2, Read::Content);
    let mut patterns = default_patterns();
    let mut files = vec![SERVER_CONFIG.to_vec()];
    files.extend(folder_files(host, SERVER_DROP_INS));
    let mut named = BTreeSet::new();
    let mut next = 0;
    while let Some(path) = files.get(next).cloned() {
        next += 1;
        if next > CONFIG_FILES_MAX {
            sink.cut(
                Category::Ssh,
                b"",
                format!("sshd reads more than {CONFIG_FILES_MAX} files; the rest was not looked at"),
            );
            break;
        }
        // What cannot be read was said when the tree was added, or is below.
        let Ok(Some(contents)) = host.read_path(&path) else { continue };
        for (word, arguments) in directives(&contents.bytes) {
            match word.as_slice() {
                b"authorizedkeysfile" => {
                    patterns.extend(arguments);
                }
                b"include" => {
                    for file in arguments.iter().flat_map(|argument| included(host, argument)) {
                        if files.len() <= CONFIG_FILES_MAX && !files.contains(&file) {
                            named.insert(file.clone());
                            files.push(file);
                        }
                    }
                }
                word if FILE_DIRECTIVES.contains(&word) => {
                    named.extend(arguments.into_iter().next().filter(|file| file.starts_with(b"/")));
                }
                _ => {}
            }
        }
    }
    for path in named.iter().filter(|path| !path.starts_with(b"/etc/ssh/")).take(NAMED_FILES_MAX) {
        tree(host, sink, Category::Ssh, path, 1, how_to_read(host, path));
    }
    let mut seen = BTreeSet::new();
    patterns.retain(|pattern| pattern.as_slice() != b"none" && seen.insert(pattern.clone()));
    if patterns.len() > PATTERNS_MAX {
        let why = format!("sshd looks for keys in more than {PATTERNS_MAX} places; the rest was not looked at");
        sink.cut(Category::AuthorizedKey, b"", why);
        patterns.truncate(PATTERNS_MAX);
    }
    if named.len() > NAMED_FILES_MAX {
        sink.cut(Category::Ssh, b"", format!("sshd's configuration names more than {NAMED_FILES_MAX} files"));
    }
    patterns
}

/// Scripts and lists are read. A program that is larger than what is read of one file, such as our own key helper, is compared as
/// programs are, by size, owner, mode and times: the comparison would otherwise call itself incomplete on every host.
fn how_to_read(host: &Host, path: &[u8]) -> Read {
    let place = host.follow(path).ok().flatten();
    let large = |place: &Place| u64::try_from(place.stat.st_size).is_ok_and(|size| size > host.limits.file_bytes);
    let program = |place: &Place| place.kind() == FileType::RegularFile && place.stat.st_mode & 0o111 != 0;
    if place.is_some_and(|place| program(&place) && large(&place)) { Read::Stat } else { Read::Content }
}

fn folder_files(host: &Host, folder: &[u8]) -> Vec<Vec<u8>> {
    let names = host.follow(folder).ok().flatten().and_then(|place| host.names(&place).ok()).unwrap_or_default();
    names.names.iter().map(|name| joined(folder, name)).collect()
}

/// The files of an `Include`. Of a pattern, all that is in its folder: more than sshd reads, never less, unless the folder itself is
/// a pattern.
fn included(host: &Host, argument: &[u8]) -> Vec<Vec<u8>> {
    let path = if argument.starts_with(b"/") { argument.to_vec() } else { joined(FOLDER, argument) };
    let is_pattern = path.iter().any(|byte| b"*?[".contains(byte));
    match path.iter().rposition(|&byte| byte == b'/').and_then(|slash| path.get(..slash)) {
        Some(folder) if is_pattern => folder_files(host, folder),
        _ => vec![path],
    }
}

/// Directives in lower case with their arguments; `Match` blocks are taken as if they always held.
fn directives(text: &[u8]) -> Vec<(Vec<u8>, Vec<Vec<u8>>)> {
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.starts_with(b"#"));
    lines
        .filter_map(|line| {
            let mut words = words(line).into_iter();
            Some((words.next()?.to_ascii_lowercase(), words.collect()))
        })
        .collect()
}

/// Words separated by blanks or `=`, with double quotes around blanks.
fn words(line: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut quoted = false;
    for &byte in line {
        match byte {
            b'"' => quoted = !quoted,
            b' ' | b'\t' | b'=' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(byte),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Which files hold the keys of which users.
pub(super) fn key_files(users: &[User], patterns: &[Vec<u8>]) -> BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> {
    let mut files: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for user in users {
        for pattern in patterns {
            files.entry(expanded(pattern, user)).or_default().insert(user.name.clone());
        }
    }
    files
}

/// `%h`, `%u`, `%U` and `%%`; a relative path is below the home.
fn expanded(pattern: &[u8], user: &User) -> Vec<u8> {
    let mut path = Vec::new();
    let mut bytes = pattern.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, if byte == b'%' { bytes.next() } else { None }) {
            (_, Some(b'h')) => path.extend_from_slice(&user.home),
            (_, Some(b'u')) => path.extend_from_slice(&user.name),
            (_, Some(b'U')) => path.extend_from_slice(&user.uid),
            (_, Some(&other)) => path.push(other),
            (_, None) => path.push(byte),
        }
    }
    if path.starts_with(b"/") { path } else { joined(&user.home, &path) }
}

/// Adds a file of keys.
pub(super) fn key_file(host: &Host, sink: &mut Sink, path: &[u8], users: &BTreeSet<Vec<u8>>) {
    let Some(contents) = container(host, sink, Category::AuthorizedKey, path) else { return };
    let whose = whose(users);
    for line in plain(&contents.bytes) {
        if sink.over(Category::AuthorizedKey, path) {
            return;
        }
        sink.add(key_item(path, &line, &whose));
    }
}

fn whose(users: &BTreeSet<Vec<u8>>) -> String {
    let names: Vec<_> = users.iter().take(USERS_SHOWN).map(|name| shown(name)).collect();
    match users.len().saturating_sub(USERS_SHOWN) {
        0 => format!("for {}", names.join(" and ")),
        more => format!("for {} and {more} more", names.join(", ")),
    }
}

fn key_item(path: &[u8], line: &[u8], whose: &str) -> Item {
    match parse_key(line) {
        Some(key) => {
            let options =
                if key.options.is_empty() { "no options".into() } else { format!("options {}", shown(key.options)) };
            let mut facts = vec![whose.to_owned(), shown(key.kind), options];
            if !key.comment.is_empty() {
                facts.push(format!("comment {}", shown(key.comment)));
            }
            Item::new(Category::AuthorizedKey, path, facts).part(key.fingerprint)
        }
        None => Item::new(Category::AuthorizedKey, path, vec![whose.to_owned()])
            .part(format!("line that is no key: {}", shown(line))),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Key<'a> {
    options: &'a [u8],
    kind: &'a [u8],
    /// As `ssh-keygen -l` prints it.
    fingerprint: String,
    comment: &'a [u8],
}

/// A line of `authorized_keys`: options, type, key, comment. Any type whose key names it is one, also those that we do not know.
fn parse_key(line: &[u8]) -> Option<Key<'_>> {
    let starts = word_starts(line);
    for (nth, &start) in starts.iter().enumerate() {
        let kind = word_at(line, start);
        let Some(&after) = starts.get(nth + 1) else { break };
        let encoded = word_at(line, after);
        let Ok(blob) = STANDARD.decode(encoded) else { continue };
        if names_type(&blob, kind) {
            return Some(Key {
                options: line.get(..start)?.trim_ascii(),
                kind,
                fingerprint: fingerprint(&blob),
                comment: line.get(after + encoded.len()..)?.trim_ascii(),
            });
        }
    }
    None
}

/// Where words start that blanks outside of double quotes separate.
fn word_starts(line: &[u8]) -> Vec<usize> {
    let (mut quoted, mut escaped, mut blank) = (false, false, true);
    let mut starts = Vec::new();
    for (at, &byte) in line.iter().enumerate() {
        let is_blank = !quoted && (byte == b' ' || byte == b'\t');
        if blank && !is_blank {
            starts.push(at);
        }
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        blank = is_blank;
    }
    starts
}

fn word_at(line: &[u8], start: usize) -> &[u8] {
    let rest = line.get(start..).unwrap_or_default();
    rest.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default()
}

/// A public key begins with the length and the name of its type (RFC 4253, 6.6).
fn names_type(blob: &[u8], kind: &[u8]) -> bool {
    let Some((length, rest)) = blob.split_first_chunk::<4>() else { return false };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    !kind.is_empty() && rest.get(..length) == Some(kind)
}

fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", STANDARD.encode(Sha256::digest(blob)).trim_end_matches('='))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn a_key_with_options_and_comment() {
        let line = format!("from=\"10.0.0.0/8\",command=\"echo \\\"a b\\\" c\" {KEY} eve at home");
        let key = parse_key(line.as_bytes()).unwrap();
        assert_eq!(key.kind, b"ssh-ed25519");
        assert_eq!(key.options, b"from=\"10.0.0.0/8\",command=\"echo \\\"a b\\\" c\"");
        assert_eq!(key.comment, b"eve at home");
        let ours = ssh_key::PublicKey::from_openssh(KEY).unwrap().fingerprint(ssh_key::HashAlg::Sha256).to_string();
        assert_eq!(key.fingerprint, ours);
        assert_eq!(parse_key(b"ssh-ed25519 AAAA"), None);
    }

    #[test]
    fn patterns_are_expanded() {
        let user = User { name: b"eve".into(), uid: b"7".into(), home: b"/home/eve".into() };
        let of = |pattern: &str| String::from_utf8(expanded(pattern.as_bytes(), &user)).unwrap();
        assert_eq!(of(".ssh/authorized_keys"), "/home/eve/.ssh/authorized_keys");
        assert_eq!(of("/etc/keys/%u-%U%%"), "/etc/keys/eve-7%");
        assert_eq!(of("%h/k%"), "/home/eve/k%");
    }

    #[test]
    fn directives_are_split_as_sshd_does() {
        let found = directives(b"# x\nAuthorizedKeysFile=/a \"/b c\"\n\nMatch user eve\n\tInclude\t/d/*.conf\n");
        let words = |line: &[&str]| line.iter().map(|w| w.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(
            found,
            [
                (b"authorizedkeysfile".to_vec(), words(&["/a", "/b c"])),
                (b"match".to_vec(), words(&["user", "eve"])),
                (b"include".to_vec(), words(&["/d/*.conf"])),
            ]
        );
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_key(&noise), directives(&noise));
            let user = User { name: noise.clone(), uid: noise.clone(), home: b"/h".into() };
            let _ = expanded(&noise, &user);
        }

        #[test]
        fn a_key_is_found_behind_any_quoted_option(option in "[a-z \\\\]{0,20}") {
            let line = format!("x=\"{}\" {KEY}", option.replace('\\', ""));
            prop_assert!(parse_key(line.as_bytes()).is_some());
        }
    }
}
