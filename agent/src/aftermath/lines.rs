//! Files in which every line counts by itself, so that a change is shown as the line that came or went.

use breakglass_api::v1::left_behind::Category;
use rustix::fs::FileType;

use super::{
    files::{Contents, Host, Place},
    snapshot::{Item, Sink, digest},
    text::shown,
    tree::{Read, beyond_limit, children, entry, joined, look, rights, target_fact, trace, unreadable},
};

/// Most sudoers files that are followed from one to the next; sudo itself stops at 128 levels.
const SUDOERS_FILES_MAX: usize = 64;

/// How a file's text becomes lines.
pub(super) type Split = fn(&[u8]) -> Vec<Vec<u8>>;

/// Adds a file of lines: one item for the file's rights and whole content, and one for each line.
pub(super) fn line_file(host: &Host, sink: &mut Sink, category: Category, path: &[u8], split: Split) {
    let Some(contents) = container(host, sink, category, path) else { return };
    for line in split(&contents.bytes) {
        if sink.over(category, path) {
            return;
        }
        sink.add(Item::new(category, path, Vec::new()).part(shown(&line)));
    }
}

/// Adds every file of lines in a folder.
pub(super) fn line_folder(host: &Host, sink: &mut Sink, category: Category, path: &[u8], split: Split) {
    let Some(place) = entry(host, sink, category, path, Read::Content) else { return };
    let folder = match place.kind() {
        FileType::Directory => Some(place),
        FileType::Symlink => host.follow(path).ok().flatten().filter(|target| target.kind() == FileType::Directory),
        _ => None,
    };
    if let Some(folder) = folder {
        children(host, sink, category, path, &folder, &mut |host, sink, path| {
            line_file(host, sink, category, path, split);
        });
    }
}

/// Adds the item of a file as a whole, and returns what it holds. What is no file, or a link to none, is an item without content.
pub(super) fn container(host: &Host, sink: &mut Sink, category: Category, path: &[u8]) -> Option<Contents> {
    let place = look(host, sink, category, path)?;
    let (file, mut facts) = match place.kind() {
        FileType::Symlink => (host.follow(path).ok().flatten(), vec![target_fact(&place)]),
        _ => (Some(place), Vec::new()),
    };
    let Some(file) = file.filter(|file| file.kind() == FileType::RegularFile) else {
        entry(host, sink, category, path, Read::Content);
        return None;
    };
    facts.extend(rights(&file.stat));
    let (contents, hidden) = contents(host, sink, category, path, &file);
    sink.add(Item::new(category, path, facts).compares(&[&hidden]));
    Some(contents)
}

fn contents(host: &Host, sink: &mut Sink, category: Category, path: &[u8], file: &Place) -> (Contents, Vec<u8>) {
    match host.read(file) {
        Ok(contents) if contents.whole => {
            let hash = digest(&[&contents.bytes]);
            (contents, hash)
        }
        Ok(contents) => {
            beyond_limit(sink, category, path, contents.bytes.len());
            let hash = digest(&[&contents.bytes, &trace(&file.stat)]);
            (contents, hash)
        }
        Err(error) => {
            unreadable(sink, category, path, error);
            (Contents::default(), trace(&file.stat))
        }
    }
}

/// Lines that are neither empty nor a comment.
pub(super) fn plain(text: &[u8]) -> Vec<Vec<u8>> {
    text.split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(<[u8]>::to_vec)
        .collect()
}

/// Lines of a sudoers file: continued ones joined; `#include`, `#includedir` and `#1000 …`, which names a uid, are no comments.
pub(super) fn sudoers_lines(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    for piece in text.split(|&byte| byte == b'\n') {
        if let Some(start) = piece.strip_suffix(b"\\") {
            line.extend_from_slice(start);
            continue;
        }
        line.extend_from_slice(piece);
        lines.push(std::mem::take(&mut line));
    }
    lines.push(line);
    lines.iter().map(|line| line.trim_ascii()).filter(|line| means_something(line)).map(<[u8]>::to_vec).collect()
}

fn means_something(line: &[u8]) -> bool {
    match line.strip_prefix(b"#") {
        Some(rest) => rest.starts_with(b"include") || rest.first().is_some_and(u8::is_ascii_digit),
        None => !line.is_empty(),
    }
}

/// Adds the sudoers file, the usual folder, and whatever they include elsewhere.
pub(super) fn sudoers(host: &Host, sink: &mut Sink) {
    let category = Category::Sudoers;
    let mut found = vec![Include::File(b"/etc/sudoers".to_vec()), Include::Folder(b"/etc/sudoers.d".to_vec())];
    let mut next = 0;
    while let Some(include) = found.get(next).cloned() {
        next += 1;
        if next > SUDOERS_FILES_MAX {
            sink.cut(category, b"", format!("more than {SUDOERS_FILES_MAX} sudoers files include each other"));
            return;
        }
        let mut files = Vec::new();
        match include {
            Include::File(path) => files.push(path),
            Include::Folder(path) => {
                if let Some(folder) = entry(host, sink, category, &path, Read::Content) {
                    children(host, sink, category, &path, &folder, &mut |_, _, path| files.push(path.to_vec()));
                }
            }
        }
        for path in files {
            let Some(contents) = container(host, sink, category, &path) else { continue };
            for line in sudoers_lines(&contents.bytes) {
                if sink.over(category, &path) {
                    return;
                }
                sink.add(Item::new(category, &path, Vec::new()).part(shown(&line)));
                let new = included(&path, &line).filter(|include| !found.contains(include));
                // One more than the limit is enough to notice that it is passed.
                found.extend(new.filter(|_| found.len() <= SUDOERS_FILES_MAX));
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Include {
    File(Vec<u8>),
    Folder(Vec<u8>),
}

/// What a line of the sudoers file at `path` includes.
fn included(path: &[u8], line: &[u8]) -> Option<Include> {
    let rest = line.strip_prefix(b"@").or_else(|| line.strip_prefix(b"#"))?;
    let (folder, name) = match rest.strip_prefix(b"includedir") {
        Some(name) => (true, name),
        None => (false, rest.strip_prefix(b"include")?),
    };
    if !name.first()?.is_ascii_whitespace() {
        return None;
    }
    let name = name.trim_ascii();
    let name = name.strip_prefix(b"\"").and_then(|n| n.strip_suffix(b"\"")).unwrap_or(name);
    let place = if name.starts_with(b"/") {
        name.to_vec()
    } else {
        let slash = path.iter().rposition(|&byte| byte == b'/')?;
        joined(path.get(..slash)?, name)
    };
    Some(if folder { Include::Folder(place) } else { Include::File(place) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sudoers_comments_that_are_none() {
        let text = b"# a comment\n#include /etc/x\n#1000 ALL=(ALL) ALL\nroot \\\n ALL=(ALL) ALL\n\n%sudo ALL";
        let lines: Vec<_> = sudoers_lines(text).into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
        assert_eq!(lines, ["#include /etc/x", "#1000 ALL=(ALL) ALL", "root  ALL=(ALL) ALL", "%sudo ALL"]);
    }

    #[test]
    fn includes_are_found() {
        let of = |line: &str| included(b"/etc/sudoers", line.as_bytes());
        assert_eq!(of("@include local"), Some(Include::File(b"/etc/local".into())));
        assert_eq!(of("#includedir \"/opt/s d\""), Some(Include::Folder(b"/opt/s d".into())));
        assert_eq!(of("#includes are nice"), None);
        assert_eq!(of("root ALL"), None);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            for line in sudoers_lines(&noise).iter().chain(&plain(&noise)) {
                prop_assert!(!line.is_empty());
                let _ = included(b"/etc/sudoers", line);
            }
        }
    }
}
