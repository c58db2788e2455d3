//! Files with special rights: setuid, setgid, capabilities.
//!
//! A walk of every local file system, one mount at a time, each file system once. Folders are opened one below the other by name, so
//! that no depth of nesting makes a path too long; a file costs one `statx` and one `lgetxattr`, and none is opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString},
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
};

use breakglass_api::v1::left_behind::Category;
use rustix::{
    fs::{AtFlags, FileType, RawDir, Statx, StatxFlags, lgetxattr, statx},
    io::Errno,
};

use super::{
    files::{Host, open_child, open_start},
    kernel::{Mount, read_mounts},
    snapshot::{Item, Sink, digest},
    text::{is_below, printable},
    tree::joined,
};

/// Deepest nesting that is walked; every level holds a descriptor.
const DEPTH_MAX: usize = 256;

/// Names of folders that wait to be walked, bytes altogether.
const PENDING_MAX: usize = 4 * 1024 * 1024;

/// Entries between two looks at the clock.
const CLOCK_EVERY: u64 = 256;

/// Room for folder entries in one system call, bytes.
const FOLDER_BUFFER: usize = 64 * 1024;

/// Room for a `security.capability` attribute; version 3 has 24 bytes.
const CAPABILITY_MAX: usize = 64;

const ATTRIBUTE: &CStr = c"security.capability";

const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// Types that hold no files of users, or cannot be walked without waiting for somebody.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Types whose files are elsewhere, or served by a program that may not answer.
const ELSEWHERE: &[&str] = &[
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "glusterfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "orangefs",
    "smb3",
    "smbfs",
    "virtiofs",
];

/// Most mounts that are walked.
const MOUNTS_MAX: usize = 256;

/// What to walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Mount points to start from.
    pub(super) starts: Vec<Vec<u8>>,
    /// Every mount point: none is entered from above, which also leaves automounts asleep.
    points: Arc<BTreeSet<Vec<u8>>>,
}

/// Each local file system once, by the mount that shows most of it.
pub(super) fn plan(host: &Host, sink: &mut Sink) -> Plan {
    let mounts = read_mounts(host, sink, Category::PrivilegedFile);
    selected(&mounts, sink)
}

fn selected(mounts: &[Mount], sink: &mut Sink) -> Plan {
    // Of several on one point, the last hides the others.
    let visible: BTreeMap<&[u8], &Mount> = mounts.iter().map(|mount| (mount.point.as_slice(), mount)).collect();
    let elsewhere: Vec<&Mount> = visible.values().copied().filter(|mount| is_elsewhere(mount)).collect();
    for mount in &elsewhere {
        let why =
            format!("files are not local ({}); not searched for files with special rights", printable(&mount.kind));
        sink.cut(Category::PrivilegedFile, &mount.point, why);
    }
    let reached = |mount: &Mount| !elsewhere.iter().any(|other| is_below(&mount.point, &other.point));
    let mut local: Vec<&Mount> = visible.values().copied().filter(|m| has_files(m) && reached(m)).collect();
    // The shortest folder shows most; a bind mount of a part is walked only where nothing shows more.
    local.sort_by_key(|mount| (mount.folder.len(), mount.point.len()));
    let mut chosen: Vec<&Mount> = Vec::new();
    for mount in local {
        if !chosen.iter().any(|other| other.device == mount.device && is_below(&mount.folder, &other.folder)) {
            chosen.push(mount);
        }
    }
    if chosen.len() > MOUNTS_MAX {
        sink.cut(
            Category::PrivilegedFile,
            b"",
            format!("more than {MOUNTS_MAX} file systems; the rest was not searched"),
        );
    }
    Plan {
        starts: chosen.iter().take(MOUNTS_MAX).map(|mount| mount.point.clone()).collect(),
        points: Arc::new(visible.keys().map(|point| point.to_vec()).collect()),
    }
}

fn is_elsewhere(mount: &Mount) -> bool {
    mount.kind.starts_with(b"fuse") && mount.kind != b"fusectl"
        || ELSEWHERE.iter().any(|kind| kind.as_bytes() == mount.kind)
}

fn has_files(mount: &Mount) -> bool {
    // The layers of a container's root are found where the host keeps them.
    let layered = mount.kind == b"overlay" && mount.point != b"/";
    !layered && !PSEUDO.iter().any(|kind| kind.as_bytes() == mount.kind)
}

/// Adds every file with special rights on the mount at `start`.
pub(super) fn privileged(host: &Host, sink: &mut Sink, plan: &Plan, start: &[u8]) {
    Walker::new(host, sink, &plan.points).mount(start);
}

/// A folder that is being walked.
struct Level {
    folder: OwnedFd,
    path: Vec<u8>,
    /// Folders in it that are still to be walked.
    pending: Vec<CString>,
}

struct Walker<'a> {
    host: &'a Host,
    sink: &'a mut Sink,
    points: &'a BTreeSet<Vec<u8>>,
    buffer: Vec<MaybeUninit<u8>>,
    entries: u64,
    pending_bytes: usize,
}

impl<'a> Walker<'a> {
    fn new(host: &'a Host, sink: &'a mut Sink, points: &'a BTreeSet<Vec<u8>>) -> Self {
        let buffer = vec![MaybeUninit::uninit(); FOLDER_BUFFER];
        Self { host, sink, points, buffer, entries: 0, pending_bytes: 0 }
    }

    /// Walks one mount.
    fn mount(&mut self, point: &[u8]) {
        match open_start(self.host, point) {
            Ok(Some((folder, FileType::Directory))) => self.below(folder, point),
            // A single file that is mounted over another.
            Ok(Some((file, _))) => {
                if let Ok(stat) = stat_of(&file, c"", AtFlags::EMPTY_PATH) {
                    self.file(&file, None, point, &stat);
                }
            }
            Ok(None) => {}
            Err(error) => self.cut(point, &format!("cannot be opened: {error}")),
        }
    }

    fn below(&mut self, folder: OwnedFd, path: &[u8]) {
        let mut levels = Vec::new();
        let mut go_on = self.enter(&mut levels, folder, path.to_vec());
        while go_on && let Some(level) = levels.last_mut() {
            let Some(name) = level.pending.pop() else {
                levels.pop();
                continue;
            };
            self.pending_bytes = self.pending_bytes.saturating_sub(name.as_bytes_with_nul().len());
            let path = joined(&level.path, name.to_bytes());
            if self.points.contains(&path) {
                continue;
            }
            let child = open_child(&level.folder, &name);
            if levels.len() >= DEPTH_MAX {
                self.cut(&path, &format!("deeper than {DEPTH_MAX} folders; not searched"));
                continue;
            }
            match child {
                Ok(child) => go_on = self.enter(&mut levels, child, path),
                // Another mount, which is walked by itself; gone meanwhile; or replaced by something else.
                Err(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => self.cut(&path, &format!("cannot be opened: {error}")),
            }
        }
    }

    /// Looks at every file of a folder and pushes it for the folders in it; false once a limit is reached.
    fn enter(&mut self, levels: &mut Vec<Level>, folder: OwnedFd, path: Vec<u8>) -> bool {
        let mut pending = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut entries = RawDir::new(&folder, &mut buffer);
        let mut go_on = true;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.cut(&path, &format!("cannot be read: {error}"));
                    break;
                }
            };
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if !self.may_go_on(&path) {
                go_on = false;
                break;
            }
            self.visit(&folder, &path, entry.file_name(), entry.file_type(), &mut pending);
        }
        self.buffer = buffer;
        put_in_order(&mut pending, levels.is_empty());
        levels.push(Level { folder, path, pending });
        go_on
    }

    fn may_go_on(&mut self, path: &[u8]) -> bool {
        self.entries += 1;
        let limit = self.host.limits.walk_entries;
        if self.entries > limit {
            let why = format!(
                "the search for files with special rights stopped after {limit} entries, at {}",
                printable(path)
            );
            self.sink.cut(Category::PrivilegedFile, b"", why);
            return false;
        }
        !(self.entries.is_multiple_of(CLOCK_EVERY) && self.sink.over(Category::PrivilegedFile, b""))
    }

    fn visit(&mut self, folder: &OwnedFd, path: &[u8], name: &CStr, kind: FileType, pending: &mut Vec<CString>) {
        match kind {
            FileType::Directory => self.postpone(path, name, pending),
            FileType::RegularFile | FileType::Unknown => {
                // Gone meanwhile, or not to be seen by anybody.
                let Ok(stat) = stat_of(folder, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) else { return };
                match FileType::from_raw_mode(stat.stx_mode.into()) {
                    FileType::Directory => self.postpone(path, name, pending),
                    FileType::RegularFile => self.file(folder, Some(name), path, &stat),
                    _ => {}
                }
            }
            // Rights on these let nobody run anything.
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => {}
        }
    }

    fn postpone(&mut self, path: &[u8], name: &CStr, pending: &mut Vec<CString>) {
        let bytes = name.to_bytes_with_nul().len();
        if self.pending_bytes + bytes > PENDING_MAX {
            return self.cut(path, "has more folders than can be kept in mind; the rest was not searched");
        }
        self.pending_bytes += bytes;
        pending.push(name.to_owned());
    }

    /// Adds a file if it has special rights. Without a name, `folder` is the file itself.
    fn file(&mut self, folder: &OwnedFd, name: Option<&CStr>, path: &[u8], stat: &Statx) {
        let path = name.map_or_else(|| path.to_vec(), |name| joined(path, name.to_bytes()));
        let capabilities = capability(self.host, folder, name, &path);
        let Some(rights) = rights_word(stat, capabilities.as_deref()) else { return };
        let facts = vec![
            rights,
            format!("{} bytes", stat.stx_size),
            format!("mode {:04o}", stat.stx_mode & 0o7777),
            format!("owner {}:{}", stat.stx_uid, stat.stx_gid),
        ];
        let hidden = [trace(stat), capabilities.unwrap_or_default()];
        self.sink.add(Item::new(Category::PrivilegedFile, &path, facts).compares(&[&hidden[0], &hidden[1]]));
    }

    fn cut(&mut self, path: &[u8], why: &str) {
        self.sink.cut(Category::PrivilegedFile, path, why);
    }
}

/// Folders at the start of a walk that are searched first: where programs are, and where anybody may write.
const FIRST: [&CStr; 9] = [c"usr", c"bin", c"sbin", c"opt", c"etc", c"root", c"tmp", c"home", c"var"];

/// Orders folders that are taken from the end, so that walks that are cut short have searched the same, and what matters most.
fn put_in_order(pending: &mut [CString], first_level: bool) {
    pending.sort_unstable_by(|a, b| b.cmp(a));
    if first_level {
        let rank = |name: &CString| FIRST.iter().position(|first| *first == name.as_c_str()).unwrap_or(FIRST.len());
        pending.sort_by_key(|name| std::cmp::Reverse(rank(name)));
    }
}

fn stat_of(folder: &OwnedFd, name: &CStr, flags: AtFlags) -> Result<Statx, Errno> {
    statx(folder, name, flags, StatxFlags::BASIC_STATS)
}

/// What changes when a file is written, replaced or touched.
fn trace(stat: &Statx) -> Vec<u8> {
    let (m, c) = (stat.stx_mtime, stat.stx_ctime);
    digest(&[
        &stat.stx_ino.to_le_bytes(),
        &m.tv_sec.to_le_bytes(),
        &m.tv_nsec.to_le_bytes(),
        &c.tv_sec.to_le_bytes(),
        &c.tv_nsec.to_le_bytes(),
    ])
}

/// The `security.capability` attribute of the file at `path`, or of `name` in `folder`, raw.
///
/// By path, which is three times as fast as by way of the descriptor, unless no path can be so long.
fn capability(host: &Host, folder: &OwnedFd, name: Option<&CStr>, path: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = [0; CAPABILITY_MAX];
    let by_path = lgetxattr(host.outer_path(path), ATTRIBUTE, &mut buffer);
    let length = match by_path {
        Err(Errno::NAMETOOLONG) => {
            let name = name.map(CStr::to_bytes).unwrap_or_default();
            let by_descriptor = joined(format!("/proc/self/fd/{}", folder.as_raw_fd()).as_bytes(), name);
            lgetxattr(by_descriptor, ATTRIBUTE, &mut buffer)
        }
        answer => answer,
    };
    match length {
        Ok(length) => buffer.get(..length).map(<[u8]>::to_vec),
        // Longer than any that the kernel takes: kept as unreadable rather than left out.
        Err(Errno::RANGE) => Some(Vec::new()),
        Err(_) => None,
    }
}

/// What is special about a file, or nothing.
fn rights_word(stat: &Statx, capabilities: Option<&[u8]>) -> Option<String> {
    let mut words = Vec::new();
    if stat.stx_mode & SETUID != 0 {
        words.push(format!("setuid {}", owner_word(stat.stx_uid)));
    }
    // Setgid without execute for the group is not a right; it once marked mandatory locks.
    if stat.stx_mode & SETGID != 0 && stat.stx_mode & GROUP_EXECUTE != 0 {
        words.push(format!("setgid {}", owner_word(stat.stx_gid)));
    }
    words.extend(capabilities.map(|raw| format!("capability ({})", capability_words(raw))));
    (!words.is_empty()).then(|| words.join(" and "))
}

fn owner_word(id: u32) -> String {
    if id == 0 { "root".into() } else { id.to_string() }
}

/// Names of capabilities by number (`include/uapi/linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// Names in a `struct vfs_cap_data`: a magic, then permitted and inheritable sets, low words first.
fn capability_words(raw: &[u8]) -> String {
    let word =
        |at: usize| raw.get(at * 4..at * 4 + 4).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_le_bytes(*b));
    let (Some(permitted), Some(inheritable)) = (word(1), word(2)) else { return "unreadable".into() };
    let high = word(3).unwrap_or(0) | word(4).unwrap_or(0);
    let set = u64::from(permitted | inheritable) | u64::from(high) << 32;
    let names: Vec<_> = (0u32..64)
        .filter(|bit| set >> bit & 1 == 1)
        .map(|bit| {
            let name = usize::try_from(bit).ok().and_then(|bit| CAPABILITIES.get(bit));
            name.map_or_else(|| format!("number {bit}"), |name| format!("cap_{name}"))
        })
        .collect();
    if names.is_empty() { "none".into() } else { names.join(" ") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mount(device: &str, folder: &str, point: &str, kind: &str) -> Mount {
        Mount {
            device: device.into(),
            folder: folder.into(),
            point: point.into(),
            options: b"rw".into(),
            kind: kind.into(),
            source: b"x".into(),
        }
    }

    #[test]
    fn every_local_file_system_once() {
        let mounts = [
            mount("8:1", "/", "/", "ext4"),
            mount("0:5", "/", "/proc", "proc"),
            mount("8:1", "/srv", "/var/www", "ext4"),
            mount("8:2", "/data", "/mnt/data", "xfs"),
            mount("0:9", "/", "/mnt/nas", "nfs4"),
            mount("0:10", "/", "/mnt/phone", "fuse.mtp"),
            mount("0:11", "/", "/var/lib/docker/overlay2/x/merged", "overlay"),
            mount("7:1", "/", "/mnt/image", "squashfs"),
            mount("8:3", "/", "/mnt/nas/local", "ext4"),
            mount("8:4", "/a", "/hidden", "ext4"),
            mount("8:5", "/srv", "/hidden", "proc"),
            mount("8:6", "/srv", "/srv2", "ext4"),
            mount("8:6", "/srv/x", "/srv3", "ext4"),
        ];
        let mut sink = Sink::new(std::time::Instant::now(), 10);
        let starts: Vec<_> = selected(&mounts, &mut sink).starts.iter().map(|point| printable(point)).collect();
        assert_eq!(starts, ["/", "/mnt/image", "/srv2", "/mnt/data"]);
        assert_eq!(sink.cuts.len(), 2, "what is not local is said: {:?}", sink.cuts);
    }

    #[test]
    fn capabilities_have_names() {
        // setcap cap_setuid,cap_bpf+ep: revision 2, effective.
        let raw = [0x0200_0001u32, 1 << 7, 0, 1 << 7, 0].map(u32::to_le_bytes).concat();
        assert_eq!(capability_words(&raw), "cap_setuid cap_bpf");
        assert_eq!(capability_words(b"short"), "unreadable");
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = capability_words(&noise);
        }
    }
}
