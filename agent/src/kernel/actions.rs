//! What tasks of a session did by system calls: from [`Action`] records to events.

use breakglass_abi::{
    Action, Kind, Ring,
    record::{ACTION_ADDRESS, ACTION_FILE, ACTION_PEER},
};
use breakglass_api::v1::{
    self, event::Body, file_action::Kind as FileKind, socket_action::Kind as SocketKind,
    system_action::Kind as SystemKind,
};

use super::assemble::{Unreadable, observed, path_of, process, tail, until_nul};
use crate::recorder::source::Observed;

/// Socket families (include/linux/socket.h).
const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// Greatest errno.
const ERRNO_MAX: u64 = 4095;

/// A record and the pieces behind it.
struct Read<'a> {
    action: Action,
    name: &'a [u8],
    base: Vec<u8>,
    name2: &'a [u8],
    base2: Vec<u8>,
}

impl<'a> Read<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let action = Action::parse(bytes).ok_or(Unreadable)?;
        let mut at = Action::SIZE;
        let mut piece = |len: u16| {
            let piece = tail(bytes, at, len.into());
            at += usize::from(len);
            piece
        };
        let name = piece(action.name_len)?;
        let base = path_of(piece(action.base_len)?, action.walks & 0xffff);
        let name2 = piece(action.name2_len)?;
        let base2 = path_of(piece(action.base2_len)?, action.walks >> 16);
        Ok(Self { action, name, base, name2, base2 })
    }

    fn has_file(&self) -> bool {
        self.action.how & ACTION_FILE != 0
    }

    /// The path of the file, or the name made absolute.
    fn path(&self) -> Vec<u8> {
        if self.has_file() { self.base.clone() } else { join(&self.base, until_nul(self.name)) }
    }

    fn path2(&self) -> Vec<u8> {
        join(&self.base2, until_nul(self.name2))
    }

    fn errno(&self) -> u32 {
        let negated = self.action.result.wrapping_neg();
        if (1..=ERRNO_MAX).contains(&negated) { negated as u32 } else { 0 }
    }

    fn file(&self) -> Option<v1::File> {
        let Action { inode, dev, mode, .. } = self.action;
        self.has_file().then_some(v1::File { dev, inode, links: 0, mode, anonymous: false })
    }

    fn process(&self) -> Option<v1::Process> {
        Some(process(&self.action.header))
    }
}

/// The event that an action record of this kind is.
pub fn event(ring: Ring, kind: Kind, bytes: &[u8]) -> Result<Observed, Unreadable> {
    let read = Read::parse(bytes)?;
    let body = match kind {
        Kind::FileOpened => Body::FileAction(opened(&read)),
        Kind::FileMade => Body::FileAction(v1::FileAction { mode: first(&read), ..file(&read, FileKind::Made) }),
        Kind::FileRenamed => Body::FileAction(v1::FileAction { flags: first(&read), ..file(&read, FileKind::Renamed) }),
        Kind::FileUnlinked => Body::FileAction(file(&read, FileKind::Unlinked)),
        Kind::FileMode => Body::FileAction(v1::FileAction { mode: first(&read), ..file(&read, FileKind::Mode) }),
        Kind::FileOwner => Body::FileAction(owner(&read)),
        Kind::FileTruncated => {
            Body::FileAction(v1::FileAction { size: read.action.values[0], ..file(&read, FileKind::Truncated) })
        }
        Kind::FileLinked => Body::FileAction(file(&read, FileKind::Linked)),
        Kind::FileSymlinked => Body::FileAction(file(&read, FileKind::Symlinked)),
        Kind::FileAttribute => Body::FileAction(file(&read, FileKind::Attribute)),
        Kind::FileMapped => Body::FileAction(mapped(&read)),
        Kind::SocketConnected => Body::SocketAction(socket(&read, SocketKind::Connected)),
        Kind::SocketBound => Body::SocketAction(socket(&read, SocketKind::Bound)),
        Kind::CredentialsChanged => Body::CredentialsChanged(credentials(&read)),
        Kind::NamespacesChanged => Body::NamespacesChanged(namespaces(&read)),
        _ => Body::SystemAction(system(&read, system_kind(kind).ok_or(Unreadable)?)),
    };
    Ok(observed(ring, &read.action.header, body))
}

fn first(read: &Read) -> u32 {
    read.action.values[0] as u32
}

fn file(read: &Read, kind: FileKind) -> v1::FileAction {
    // What a symbolic link says and an attribute's name are not paths.
    let other = match kind {
        FileKind::Symlinked | FileKind::Attribute => until_nul(read.name2).to_vec(),
        _ => read.path2(),
    };
    v1::FileAction {
        process: read.process(),
        kind: kind.into(),
        path: read.path(),
        other,
        claimed: !read.has_file(),
        file: read.file(),
        euid: read.action.euid,
        ..v1::FileAction::default()
    }
}

/// The flags as the kernel holds them; those that it forgets after the opening, as the caller gave them. All of them are the caller's where the
/// file could not be found any more.
fn opened(read: &Read) -> v1::FileAction {
    /// `O_CREAT`, `O_EXCL`, `O_TRUNC`.
    const FORGOTTEN: u32 = 0o100 | 0o200 | 0o1000;
    let flags = if read.has_file() { read.action.file_flags | (first(read) & FORGOTTEN) } else { first(read) };
    v1::FileAction { flags, ..file(read, FileKind::Opened) }
}

fn owner(read: &Read) -> v1::FileAction {
    let [uid, gid, _] = read.action.values;
    v1::FileAction { uid: uid as u32, gid: gid as u32, ..file(read, FileKind::Owner) }
}

fn mapped(read: &Read) -> v1::FileAction {
    let [protection, flags, size] = read.action.values;
    v1::FileAction { mode: protection as u32, flags: flags as u32, size, ..file(read, FileKind::Mapped) }
}

fn socket(read: &Read, kind: SocketKind) -> v1::SocketAction {
    let mut socket = v1::SocketAction {
        process: read.process(),
        kind: kind.into(),
        errno: read.errno(),
        claimed: true,
        euid: read.action.euid,
        ..v1::SocketAction::default()
    };
    if read.action.how & ACTION_ADDRESS != 0 {
        let [low, high, port_and_family, local_port] = read.action.extra;
        socket.claimed = false;
        socket.local_port = local_port as u32;
        socket.family = (port_and_family >> 16) as u32 & 0xffff;
        socket.port = u16::from_be(port_and_family as u16).into();
        socket.address = if socket.family == AF_INET {
            (low as u32).to_le_bytes().to_vec()
        } else {
            [low.to_le_bytes(), high.to_le_bytes()].concat()
        };
    } else {
        claimed_address(&mut socket, read.name);
    }
    if read.action.how & ACTION_PEER != 0 {
        let [tgid, start_ns, ..] = read.action.extra;
        socket.peer = Some(v1::Process { pid: tgid as u32, start_ns });
    }
    socket
}

/// `struct sockaddr` as the caller gave it (uapi linux/in.h, in6.h, un.h).
fn claimed_address(socket: &mut v1::SocketAction, raw: &[u8]) {
    let Some((family, rest)) = raw.split_first_chunk() else { return };
    socket.family = u16::from_le_bytes(*family).into();
    let port = || rest.first_chunk().map_or(0, |port| u16::from_be_bytes(*port).into());
    match socket.family {
        AF_UNIX => {
            let is_abstract = rest.first() == Some(&0);
            socket.path = if is_abstract { rest } else { until_nul(rest) }.to_vec();
        }
        AF_INET => {
            socket.port = port();
            socket.address = rest.get(2..6).unwrap_or_default().to_vec();
        }
        AF_INET6 => {
            socket.port = port();
            socket.address = rest.get(6..22).unwrap_or_default().to_vec();
        }
        _ => socket.raw = raw.to_vec(),
    }
}

fn credentials(read: &Read) -> v1::CredentialsChanged {
    let [real, effective, saved, cap_effective] = read.action.extra;
    let credentials = v1::Credentials {
        uid: real as u32,
        gid: (real >> 32) as u32,
        euid: effective as u32,
        egid: (effective >> 32) as u32,
        suid: saved as u32,
        sgid: (saved >> 32) as u32,
        loginuid: read.action.values[0] as u32,
        audit_session: read.action.values[1] as u32,
        cap_effective,
    };
    v1::CredentialsChanged { process: read.process(), credentials: Some(credentials) }
}

fn namespaces(read: &Read) -> v1::NamespacesChanged {
    let [flags, _, child] = read.action.values;
    let [first, second, ..] = read.action.extra;
    let namespaces = v1::Namespaces {
        pid: first as u32,
        mount: (first >> 32) as u32,
        user: second as u32,
        net: (second >> 32) as u32,
        cgroup_id: 0,
    };
    v1::NamespacesChanged {
        process: read.process(),
        flags,
        namespaces: (child == 0).then_some(namespaces),
        child: child as u32,
    }
}

fn system(read: &Read, kind: SystemKind) -> v1::SystemAction {
    let words = matches!(
        kind,
        SystemKind::ModuleLoaded | SystemKind::ModuleRemoved | SystemKind::Kexec | SystemKind::HostNamed
    );
    let painted = kind == SystemKind::ScreenPainted;
    let [value, value2, third] = read.action.values;
    let [target, target_start, ..] = read.action.extra;
    v1::SystemAction {
        process: read.process(),
        kind: kind.into(),
        errno: read.errno(),
        name: if painted {
            read.name.to_vec()
        } else if words && !read.has_file() {
            until_nul(read.name).to_vec()
        } else {
            read.path()
        },
        // What is mounted is a device or a word rather than a path.
        other: if words || kind == SystemKind::Mounted { until_nul(read.name2).to_vec() } else { read.path2() },
        value,
        value2: if kind == SystemKind::MemoryExecutable { third } else { value2 },
        target: (kind == SystemKind::Signalled).then_some(v1::Process { pid: target as u32, start_ns: target_start }),
        file: read.file(),
        euid: read.action.euid,
    }
}

fn system_kind(kind: Kind) -> Option<SystemKind> {
    Some(match kind {
        Kind::RootChanged => SystemKind::RootChanged,
        Kind::Traced => SystemKind::Traced,
        Kind::MemoryWritten => SystemKind::MemoryWritten,
        Kind::DescriptorTaken => SystemKind::DescriptorTaken,
        Kind::Signalled => SystemKind::Signalled,
        Kind::Mounted => SystemKind::Mounted,
        Kind::Unmounted => SystemKind::Unmounted,
        Kind::MountMoved => SystemKind::MountMoved,
        Kind::MountChanged => SystemKind::MountChanged,
        Kind::ModuleLoaded => SystemKind::ModuleLoaded,
        Kind::ModuleRemoved => SystemKind::ModuleRemoved,
        Kind::Kexec => SystemKind::Kexec,
        Kind::Bpf => SystemKind::Bpf,
        Kind::PerfOpened => SystemKind::PerfOpened,
        Kind::IoUring => SystemKind::IoUring,
        Kind::UserFault => SystemKind::Userfault,
        Kind::MemoryExecutable => SystemKind::MemoryExecutable,
        Kind::LoginUidSet => SystemKind::LoginUidSet,
        Kind::TerminalInjected => SystemKind::TerminalInjected,
        Kind::ClockSet => SystemKind::ClockSet,
        Kind::HostNamed => SystemKind::HostNamed,
        Kind::Reboot => SystemKind::Reboot,
        Kind::Swap => SystemKind::Swap,
        Kind::Accounting => SystemKind::Accounting,
        Kind::PortAccess => SystemKind::PortAccess,
        Kind::ScreenPainted => SystemKind::ScreenPainted,
        Kind::Exec
        | Kind::ExecPart
        | Kind::ExecFailed
        | Kind::Fork
        | Kind::Exit
        | Kind::TerminalOutput
        | Kind::TerminalInput
        | Kind::TerminalWithheld
        | Kind::StdioOutput
        | Kind::StdioInput
        | Kind::Refused
        | Kind::FileOpened
        | Kind::FileMade
        | Kind::FileRenamed
        | Kind::FileUnlinked
        | Kind::FileMode
        | Kind::FileOwner
        | Kind::FileTruncated
        | Kind::FileLinked
        | Kind::FileSymlinked
        | Kind::FileAttribute
        | Kind::FileMapped
        | Kind::SocketConnected
        | Kind::SocketBound
        | Kind::CredentialsChanged
        | Kind::NamespacesChanged => return None,
    })
}

/// A name as seen from a folder.
fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    if name.first() == Some(&b'/') || base.is_empty() {
        return name.to_vec();
    }
    if name.is_empty() {
        return base.to_vec();
    }
    let slash: &[u8] = if base.ends_with(b"/") { b"" } else { b"/" };
    [base, slash, name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_from_their_folder() {
        assert_eq!(join(b"/home/x", b"a"), b"/home/x/a");
        assert_eq!(join(b"/", b"a"), b"/a");
        assert_eq!(join(b"/home", b"/etc/x"), b"/etc/x");
        assert_eq!(join(b"/home", b""), b"/home");
        assert_eq!(join(b"", b""), b"");
    }

    #[test]
    fn addresses_are_read_as_far_as_they_go() {
        let read = |raw: &[u8]| {
            let mut socket = v1::SocketAction::default();
            claimed_address(&mut socket, raw);
            socket
        };
        let inet = read(&[2, 0, 0x1f, 0x90, 10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((inet.family, inet.port, inet.address), (2, 8080, vec![10, 0, 0, 5]));
        assert_eq!(read(b"\x01\0/run/x\0\0").path, b"/run/x");
        assert_eq!(read(b"\x01\0\0name").path, b"\0name");
        assert_eq!(read(&[16, 0, 1, 2]).raw, [16, 0, 1, 2]);
        for len in 0..28 {
            read(&vec![10, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1][..len]);
        }
    }

    fn record(kind: Kind, name: &[u8], base: &[u8]) -> Vec<u8> {
        let len = (Action::SIZE + name.len() + base.len()) as u32;
        let mut action = Action::parse(&[0; Action::SIZE]).unwrap();
        action.header.len = len;
        action.header.kind = kind as u16;
        action.result = (-13_i64) as u64;
        action.name_len = name.len() as u16;
        action.base_len = base.len() as u16;
        action.walks = breakglass_abi::record::WALK_ROOT;
        [&action.to_bytes()[..], name, base].concat()
    }

    #[test]
    fn every_kind_of_action_is_an_event_and_a_record_cut_short_is_none() {
        for kind in
            Kind::ALL.into_iter().filter(|kind| *kind as u16 >= Kind::FileOpened as u16 && *kind != Kind::Refused)
        {
            let bytes = record(kind, b"name", b"folder\0");
            assert!(event(Ring::Audit, kind, &bytes).is_ok(), "{kind:?}");
            for len in 0..bytes.len() {
                assert!(event(Ring::Audit, kind, &bytes[..len]).is_err(), "{kind:?} {len}");
            }
        }
        assert!(event(Ring::Audit, Kind::Exec, &record(Kind::Exec, b"", b"")).is_err());
    }

    #[test]
    fn a_claimed_name_is_made_absolute_and_a_refusal_is_told() {
        let observed = event(Ring::Audit, Kind::Unmounted, &record(Kind::Unmounted, b"mnt", b"home\0")).unwrap();
        let Some(Body::SystemAction(action)) = observed.event.body else { panic!("{observed:?}") };
        const EACCES: u32 = 13;
        assert_eq!((&action.name[..], action.errno, action.kind()), (&b"/home/mnt"[..], EACCES, SystemKind::Unmounted));
    }
}
