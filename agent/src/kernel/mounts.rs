//! Mounts on the way to a path, by the kernel's numbers.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Read as _},
    os::unix::{ffi::OsStringExt as _, fs::DirEntryExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, statx};

use super::guard::{Place, place_of};
use crate::procfs;

/// What `/proc/PID/mountinfo` says of a mount (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    parent: u32,
    point: PathBuf,
}

/// The text for this process; bytes, since a folder may be called anything.
pub fn own() -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    procfs::open("self/mountinfo", OFlags::RDONLY)?.read_to_end(&mut text)?;
    Ok(text)
}

/// All of the text's, by number: `36 35 98:0 /mnt1 /mnt/parent\040x rw,noatime master:1 - ext3 /dev/root rw`.
pub fn table(text: &[u8]) -> BTreeMap<u32, Mount> {
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok();
    let mount = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let (id, parent, point) = (number(words.next()?)?, number(words.next()?)?, words.nth(2)?);
        Some((id, Mount { parent, point: PathBuf::from(OsString::from_vec(unescaped(point))) }))
    };
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Undoes the octal escapes that the kernel writes for blanks, line ends and backslashes (proc_pid_mountinfo(5)).
pub fn unescaped(escaped: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((first, behind)) = rest.split_first() {
        match behind.first_chunk::<3>() {
            Some(digits) if *first == b'\\' && digits.iter().all(|digit| matches!(digit, b'0'..=b'7')) => {
                out.push(digits.iter().fold(0, |sum: u8, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = behind.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

/// The mount that a path leads to.
pub fn of(path: &Path) -> Option<u32> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(found.stx_mask)
        .contains(StatxFlags::MNT_ID)
        .then_some(found.stx_mnt_id)?
        .try_into()
        .ok()
}

/// A mount, the one that it is mounted on, and so on.
pub fn down_from(table: &BTreeMap<u32, Mount>, mount: Option<u32>) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = mount;
    while let Some(number) = next.filter(|number| !found.contains(number)) {
        found.push(number);
        next = table.get(&number).map(|mount| mount.parent);
    }
    found
}

/// The inode that it is mounted on. Only its folder's list has that: whoever asks for the path is told of what is mounted there.
pub fn below(mount: &Mount) -> Option<Place> {
    let (folder, name) = (mount.point.parent()?, mount.point.file_name()?);
    let entry = fs::read_dir(folder).ok()?.filter_map(Result::ok).find(|entry| entry.file_name() == name)?;
    Some((place_of(folder)?.0, entry.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_down_ends_at_the_root() {
        let text =
            b"36 35 98:0 /a /mnt/x\\040y rw - ext3 /dev/root rw\n35 1 0:1 / / rw shared:1 - tmpfs none rw\nnonsense\n\
                     40 40 0:1 / /x rw - tmpfs none rw\n";
        let table = table(text);
        assert_eq!(table[&36], Mount { parent: 35, point: "/mnt/x y".into() });
        assert_eq!(down_from(&table, Some(36)), [36, 35, 1]);
        assert_eq!(down_from(&table, Some(40)), [40]);
        assert!(down_from(&table, None).is_empty());
        assert_eq!(unescaped(br"\1344\09"), br"\4\09");
    }

    #[test]
    fn the_running_kernel_numbers_mounts() {
        let table = table(&fs::read("/proc/self/mountinfo").unwrap());
        let proc = of(Path::new("/proc")).unwrap();
        assert_eq!(table[&proc].point, Path::new("/proc"));
        let (dev, inode) = below(&table[&proc]).unwrap();
        assert!(dev == place_of(Path::new("/")).unwrap().0 && inode != 0);
        assert_ne!((dev, inode), place_of(Path::new("/proc")).unwrap());
    }
}
