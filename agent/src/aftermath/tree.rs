//! Files and folders as items.

use breakglass_api::v1::left_behind::Category;
use rustix::{
    fs::{FileType, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{
    files::{Host, Place, kind_word},
    snapshot::{Item, Sink, digest},
    text::{short_hex, shown},
};

/// Endings of the names under `/run` of what systemd makes for every login, and that starts nothing.
const FLEETING: &[&[u8]] = &[b".scope", b".scope.d"];

fn is_fleeting(category: Category, path: &[u8]) -> bool {
    category == Category::Systemd && path.starts_with(b"/run/") && FLEETING.iter().any(|ending| path.ends_with(ending))
}

/// How much of a file is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Its bytes.
    Content,
    /// Size, owner, mode, inode and times: for what is too much to read, and cannot be changed without a trace in these.
    Stat,
}

/// What one place is.
pub(super) struct Described {
    pub(super) facts: Vec<String>,
    pub(super) hidden: Vec<u8>,
}

/// Adds what is at `path`, and what is in it down to `depth` folders.
pub(super) fn tree(host: &Host, sink: &mut Sink, category: Category, path: &[u8], depth: u32, read: Read) {
    let Some(place) = entry(host, sink, category, path, read) else { return };
    if depth == 0 {
        return;
    }
    // The configured folder itself may be reached by a link; links inside it are compared and not followed into folders.
    let folder = match place.kind() {
        FileType::Directory => Some(place),
        FileType::Symlink => host.follow(path).ok().flatten().filter(|target| target.kind() == FileType::Directory),
        _ => None,
    };
    if let Some(folder) = folder {
        children(host, sink, category, path, &folder, &mut |host, sink, path| {
            descend(host, sink, category, path, depth - 1, read);
        });
    }
}

fn descend(host: &Host, sink: &mut Sink, category: Category, path: &[u8], depth: u32, read: Read) {
    let Some(place) = entry(host, sink, category, path, read) else { return };
    if depth > 0 && place.kind() == FileType::Directory {
        children(host, sink, category, path, &place, &mut |host, sink, path| {
            descend(host, sink, category, path, depth - 1, read);
        });
    }
}

/// Calls `each` with the path of everything in a folder.
pub(super) fn children(
    host: &Host,
    sink: &mut Sink,
    category: Category,
    path: &[u8],
    folder: &Place,
    each: &mut dyn FnMut(&Host, &mut Sink, &[u8]),
) {
    let names = match host.names(folder) {
        Ok(names) => names,
        Err(error) => return unreadable(sink, category, path, error),
    };
    if !names.whole {
        let limit = host.limits.folder_names;
        sink.cut(category, path, format!("more than {limit} entries; the rest was not looked at"));
    }
    for name in names.names {
        let child = joined(path, &name);
        if is_fleeting(category, &child) {
            continue;
        }
        if sink.over(category, path) {
            return;
        }
        each(host, sink, &child);
    }
}

/// `folder/name`.
pub(super) fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    [folder, b"/", name].concat()
}

/// Adds what is at `path` itself; returns it where there is something.
pub(super) fn entry(host: &Host, sink: &mut Sink, category: Category, path: &[u8], read: Read) -> Option<Place> {
    let place = look(host, sink, category, path)?;
    let described = if place.kind() == FileType::Symlink {
        link(host, sink, category, path, &place, read)
    } else {
        describe(host, sink, category, path, &place, read)
    };
    sink.add(Item::new(category, path, described.facts).compares(&[&described.hidden]));
    Some(place)
}

/// What is at `path` itself; a failure is said.
pub(super) fn look(host: &Host, sink: &mut Sink, category: Category, path: &[u8]) -> Option<Place> {
    match host.look(path) {
        Ok(place) => place,
        Err(error) => {
            unreadable(sink, category, path, error);
            None
        }
    }
}

/// Says that something could not be looked at.
pub(super) fn unreadable(sink: &mut Sink, category: Category, path: &[u8], error: Errno) {
    sink.cut(category, path, format!("cannot be read: {error}"));
}

fn link(host: &Host, sink: &mut Sink, category: Category, path: &[u8], place: &Place, read: Read) -> Described {
    let mut facts = vec![target_fact(place)];
    match host.follow(path) {
        Ok(Some(target)) if target.kind() == FileType::RegularFile => {
            let described = describe(host, sink, category, path, &target, read);
            facts.extend(described.facts);
            Described { facts, hidden: described.hidden }
        }
        Ok(Some(target)) => {
            facts.push(format!("to a {}", kind_word(target.kind())));
            Described { facts, hidden: Vec::new() }
        }
        Ok(None) | Err(_) => {
            facts.push("to nothing".into());
            Described { facts, hidden: Vec::new() }
        }
    }
}

/// Where a link points, as a fact.
pub(super) fn target_fact(link: &Place) -> String {
    match link.target() {
        Ok(target) => format!("link to {}", shown(&target)),
        Err(error) => format!("link that cannot be read: {error}"),
    }
}

/// What a place that is no link is.
pub(super) fn describe(
    host: &Host,
    sink: &mut Sink,
    category: Category,
    path: &[u8],
    place: &Place,
    read: Read,
) -> Described {
    let kind = place.kind();
    if kind != FileType::RegularFile {
        let facts = [vec![kind_word(kind).to_owned()], rights(&place.stat)].concat();
        return Described { facts, hidden: Vec::new() };
    }
    let mut facts = vec![bytes_fact(&place.stat)];
    facts.extend(rights(&place.stat));
    if read == Read::Stat {
        return Described { facts, hidden: trace(&place.stat) };
    }
    match host.read(place) {
        Ok(contents) if contents.whole => {
            let hash = Sha256::digest(&contents.bytes);
            facts.push(format!("sha256 {}", short_hex(&hash)));
            Described { facts, hidden: hash.to_vec() }
        }
        Ok(contents) => {
            beyond_limit(sink, category, path, contents.bytes.len());
            Described { facts, hidden: digest(&[&contents.bytes, &trace(&place.stat)]) }
        }
        Err(error) => {
            unreadable(sink, category, path, error);
            Described { facts, hidden: trace(&place.stat) }
        }
    }
}

/// Says that a file was read in part.
pub(super) fn beyond_limit(sink: &mut Sink, category: Category, path: &[u8], read: usize) {
    sink.cut(
        category,
        path,
        format!("only the first {read} bytes were read; of the rest, size and times are compared"),
    );
}

fn bytes_fact(stat: &Stat) -> String {
    format!("{} bytes", stat.st_size)
}

/// Mode and owner.
pub(super) fn rights(stat: &Stat) -> Vec<String> {
    vec![format!("mode {:04o}", stat.st_mode & 0o7777), format!("owner {}:{}", stat.st_uid, stat.st_gid)]
}

/// What changes when a file is written, replaced or touched, as bytes.
pub(super) fn trace(stat: &Stat) -> Vec<u8> {
    let numbers = [
        i128::from(stat.st_ino),
        i128::from(stat.st_size),
        i128::from(stat.st_mtime),
        i128::from(stat.st_mtime_nsec),
        i128::from(stat.st_ctime),
        i128::from(stat.st_ctime_nsec),
    ];
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
