//! What a session's tasks asked others for, as far as their own records say.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
};

use breakglass_api::v1::{self, file_action::Kind as FileKind, socket_action::Kind as SocketKind, witness_link::Kind};

/// Requests that are remembered; the oldest go first.
const ASKED_MAX: usize = 1024;
/// Files of others' that are remembered; beyond that what runs from them is recorded without its link.
const FILES_MAX: usize = 1024;

const AF_UNIX: u32 = 1;
const EINPROGRESS: u32 = 115;

/// Sockets of the service manager, by D-Bus too (sd-bus: `/run/systemd/private`, `user/UID/systemd/private`, `bus`).
const MANAGER: [&[u8]; 4] = [b"/systemd/private", b"/dbus/system_bus_socket", b"/bus", b"/io.systemd.Manager"];
/// Sockets of container runtimes, by the ends of their paths.
const CONTAINER: [&[u8]; 6] =
    [b"/docker.sock", b"/containerd.sock", b"/podman.sock", b"/crio.sock", b"/lxd/unix.socket", b"/incus/unix.socket"];
/// Parts of paths of terminal multiplexers' sockets.
const MULTIPLEXER: [&[u8]; 4] = [b"/tmux-", b"/screen/", b"/screens/", b"/zellij"];
/// Fronts of paths that every other program connects to, and by which nothing is started.
const IDLE: [&[u8]; 6] =
    [b"/run/systemd/journal/", b"/run/systemd/userdb/", b"/run/nscd/", b"/var/run/nscd/", b"/dev/log", b"/run/udev/"];
/// Folders and files of cron, anacron and at.
const JOBS: [&[u8]; 6] =
    [b"/var/spool/cron/", b"/var/spool/at/", b"/var/spool/anacron/", b"/etc/cron", b"/etc/anacrontab", b"/etc/at"];
/// Those of at alone.
const AT: [&[u8]; 4] = [b"/var/spool/cron/atjobs/", b"/var/spool/cron/atspool/", b"/var/spool/at/", b"/etc/at"];
/// Parts of paths of the service manager's units.
const UNITS: [&[u8]; 2] = [b"/systemd/system/", b"/systemd/user/"];

/// One connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Who connected.
    pub by: Option<v1::Process>,
    /// When.
    pub boot_ns: u64,
    /// What for, as the address has it.
    pub kind: Kind,
    /// The address, for people.
    pub through: Vec<u8>,
    /// Who listens there, where the kernel says so.
    pub peer: Option<v1::Process>,
    /// Where to by IP, and the port at the asker's end.
    pub address: Option<(IpAddr, u32)>,
}

/// A file of somebody else's that the session wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Who wrote it last.
    pub by: Option<v1::Process>,
    /// When.
    pub boot_ns: u64,
    /// The file.
    pub path: Vec<u8>,
}

impl Written {
    /// Of a file of cron's or at's: whether it is at's.
    pub fn is_for_at(&self) -> bool {
        AT.iter().any(|front| self.path.starts_with(front))
    }
}

/// All that a session asked for.
#[derive(Debug, Default)]
pub struct Requests {
    /// Oldest first.
    asked: VecDeque<Asked>,
    jobs: Vec<Written>,
    units: Vec<Written>,
    seen: BTreeSet<Vec<u8>>,
}

impl Requests {
    /// Whether nothing was asked of anybody.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.jobs.is_empty() && self.units.is_empty()
    }

    /// Takes note of a connection.
    pub fn socket(&mut self, action: &v1::SocketAction, boot_ns: u64) {
        let connected = action.errno == 0 || action.errno == EINPROGRESS;
        if action.kind() != SocketKind::Connected || !connected {
            return;
        }
        let asked = if action.family == AF_UNIX {
            if IDLE.iter().any(|front| action.path.starts_with(front)) {
                return;
            }
            let kind = socket_kind(&action.path);
            Asked { by: action.process, boot_ns, kind, through: action.path.clone(), peer: action.peer, address: None }
        } else {
            // Any address may be this host's: a login by ssh is found by what the server tells its children.
            let Some(address) = ip_of(&action.address) else { return };
            let through = format!("{address} port {}", action.port).into_bytes();
            let (by, address) = (action.process, Some((address, action.local_port)));
            Asked { by, boot_ns, kind: Kind::LocalLogin, through, peer: None, address }
        };
        self.asked.push_back(asked);
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
    }

    /// Takes note of a file.
    pub fn file(&mut self, action: &v1::FileAction, boot_ns: u64) {
        let path = match action.kind() {
            FileKind::Opened | FileKind::Made => &action.path,
            FileKind::Renamed | FileKind::Linked => &action.other,
            FileKind::Symlinked => &action.path,
            _ => return,
        };
        let list = if JOBS.iter().any(|front| path.starts_with(front)) {
            &mut self.jobs
        } else if UNITS.iter().any(|part| contains(path, part)) {
            &mut self.units
        } else {
            return;
        };
        if self.seen.len() < FILES_MAX && self.seen.insert(path.clone()) {
            list.push(Written { by: action.process, boot_ns, path: path.clone() });
        }
    }

    /// Connections, the newest first.
    pub fn asked(&self) -> impl Iterator<Item = &Asked> {
        self.asked.iter().rev()
    }

    /// Files of cron and at, the newest first.
    pub fn jobs(&self) -> impl Iterator<Item = &Written> + Clone {
        self.jobs.iter().rev()
    }

    /// The session's file of this unit, or a folder of additions to it.
    pub fn unit(&self, name: &str) -> Option<&Written> {
        self.units.iter().rev().find(|written| {
            let is_part = |part: &[u8]| part == name.as_bytes() || part.strip_suffix(b".d") == Some(name.as_bytes());
            written.path.split(|byte| *byte == b'/').any(is_part)
        })
    }
}

/// What somebody wants who connects there.
fn socket_kind(path: &[u8]) -> Kind {
    if MANAGER.iter().any(|end| path.ends_with(end)) {
        Kind::Manager
    } else if CONTAINER.iter().any(|end| path.ends_with(end)) {
        Kind::Container
    } else if MULTIPLEXER.iter().any(|part| contains(path, part)) {
        Kind::Multiplexer
    } else {
        Kind::Service
    }
}

/// 4 or 16 bytes; an IPv4 address in the form of an IPv6 one is the former.
pub fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    let long = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| long()).ok().map(|address| address.to_canonical())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
