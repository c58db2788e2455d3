//! What programs did, a line each: files, sockets, users, namespaces, the system.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use breakglass_api::v1::{
    self, FileAction, SocketAction, SystemAction, event::Body, file_action::Kind as File,
    socket_action::Kind as Socket, system_action::Kind as System,
};

use crate::print::{Style, errno, quote, signal};

/// Permission bits that make a program run as somebody else.
const SETUID_SETGID: u32 = 0o6000;

/// Kinds of events that are actions, as the collector names them.
pub(super) const KINDS: [&str; 5] =
    ["file_action", "socket_action", "credentials_changed", "namespaces_changed", "system_action"];

/// An action in words, harmless; `None` for what is no action.
pub(super) fn describe(body: &Body) -> Option<(Style, String)> {
    Some(match body {
        Body::FileAction(action) => file(action),
        Body::SocketAction(action) => (Style::Dim, socket(action)),
        Body::CredentialsChanged(changed) => {
            let is = changed.credentials.unwrap_or_default();
            let who = format!("uid {}, effective {}, saved {}", is.uid, is.euid, is.suid);
            (Style::Dim, format!("user: {who}; gid {}, effective {}, saved {}", is.gid, is.egid, is.sgid))
        }
        Body::NamespacesChanged(changed) => (Style::Warn, namespaces(changed)),
        Body::SystemAction(action) => (Style::Warn, system(action)),
        _ => return None,
    })
}

fn path(bytes: &[u8]) -> String {
    if bytes.is_empty() { "?".to_owned() } else { quote::line(&[bytes]) }
}

fn file(action: &FileAction) -> (Style, String) {
    let (name, other) = (path(&action.path), path(&action.other));
    let text = match action.kind() {
        File::Unspecified => format!("file: {name}"),
        File::Opened => format!("file: written to {name}"),
        File::Made => format!("file: made {name}, mode {:o}", action.mode & 0o7777),
        File::Renamed => format!("file: {name} became {other}"),
        File::Unlinked => format!("file: removed {name}"),
        File::Mode => format!("file: {name} got mode {:o}", action.mode),
        File::Owner => format!("file: {name} got owner {}:{}", id(action.uid), id(action.gid)),
        File::Truncated => format!("file: {name} cut to {} bytes", action.size),
        File::Linked => format!("file: {other} is now {name} as well"),
        File::Symlinked => format!("file: {name} points to {other}"),
        File::Attribute => format!("file: {name} had its attribute {other} changed"),
        File::Mapped => format!("code: from {name}"),
    };
    let opens_door = action.kind() == File::Mode && action.mode & SETUID_SETGID != 0;
    (if opens_door { Style::Warn } else { Style::Dim }, text)
}

fn id(number: u32) -> String {
    if number == u32::MAX { "as it was".to_owned() } else { number.to_string() }
}

fn socket(action: &SocketAction) -> String {
    let what = match action.kind() {
        Socket::Bound => "bound",
        Socket::Connected | Socket::Unspecified => "to",
    };
    format!("net: {what} {}{}", address(action), refusal(action.errno))
}

fn address(action: &SocketAction) -> String {
    if let Some(name) = action.path.strip_prefix(&[0]) {
        return quote::line(&[[b"@", name].concat()]);
    }
    if !action.path.is_empty() {
        return path(&action.path);
    }
    let port = u16::try_from(action.port).unwrap_or_default();
    let four = <[u8; 4]>::try_from(&action.address[..]).map(Ipv4Addr::from).map(Into::into);
    let six = <[u8; 16]>::try_from(&action.address[..]).map(Ipv6Addr::from).map(Into::into);
    match four.or(six) {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("(family {})", action.family),
    }
}

fn namespaces(changed: &v1::NamespacesChanged) -> String {
    /// include/uapi/linux/sched.h
    const NAMES: [(u64, &str); 8] = [
        (0x0002_0000, "mount"),
        (0x0200_0000, "cgroup"),
        (0x0400_0000, "uts"),
        (0x0800_0000, "ipc"),
        (0x1000_0000, "user"),
        (0x2000_0000, "pid"),
        (0x4000_0000, "net"),
        (0x80, "time"),
    ];
    let names: Vec<&str> = NAMES.iter().filter(|(bit, _)| changed.flags & bit != 0).map(|(_, name)| *name).collect();
    let names = if names.is_empty() { "others".to_owned() } else { names.join(", ") };
    let whose = if changed.child == 0 { "went into" } else { "put a child into" };
    format!("namespaces: {whose} {names}")
}

fn system(action: &SystemAction) -> String {
    let (name, other) = (path(&action.name), path(&action.other));
    let (value, value2) = (action.value, action.value2);
    let text = match action.kind() {
        System::Unspecified => "something".to_owned(),
        System::RootChanged => format!("root directory changed to {name}"),
        System::Traced => format!("ptrace request {value:#x} on process {value2}"),
        System::MemoryWritten => format!("memory of process {value2} written"),
        System::DescriptorTaken => format!("descriptor {value} of another process taken"),
        System::Signalled => {
            let target = action.target.unwrap_or_default();
            let number = u32::try_from(value).unwrap_or_default();
            format!("{} sent to process {} outside of the session", signal(number), target.pid)
        }
        System::Mounted => format!("{other} mounted on {name}, flags {value:#x}"),
        System::Unmounted => format!("{name} unmounted"),
        System::MountMoved => format!("mount {other} moved to {name}"),
        System::MountChanged => format!("mount {name} changed"),
        System::ModuleLoaded => format!("kernel module {name} loaded, parameters {other}"),
        System::ModuleRemoved => format!("kernel module {name} removed"),
        System::Kexec => format!("another kernel made ready: {name}"),
        System::Bpf => format!("bpf command {value}"),
        System::PerfOpened => "perf event opened".to_owned(),
        System::IoUring => "io_uring set up".to_owned(),
        System::Userfault => "userfaultfd opened".to_owned(),
        System::MemoryExecutable => format!("{value2} bytes of memory made executable, protection {value:#x}"),
        System::LoginUidSet => format!("audit login uid set to {value}"),
        System::TerminalInjected => format!("terminal {name} controlled, request {value:#x}"),
        System::ClockSet => format!("clock {value} set"),
        System::HostNamed => format!("host or domain named {name}"),
        System::Reboot => format!("reboot command {value:#x}"),
        System::Swap => format!("swap {name} switched"),
        System::Accounting => format!("process accounting set to {name}"),
        System::PortAccess => "access to I/O ports".to_owned(),
        System::ScreenPainted => format!("screen of a virtual console (7:{value}) painted, {value2} bytes: {name}"),
    };
    format!("system: {text}{}", refusal(action.errno))
}

fn refusal(number: u32) -> String {
    if number == 0 { String::new() } else { format!(" ({})", errno(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: Body) -> String {
        describe(&body).map(|(_, text)| text).unwrap_or_default()
    }

    #[test]
    fn what_a_session_named_is_harmless_when_printed() {
        let renamed = FileAction {
            kind: File::Renamed.into(),
            path: b"/tmp/\x1b[2J".to_vec(),
            other: b"a b".to_vec(),
            ..FileAction::default()
        };
        let text = text(Body::FileAction(renamed));
        assert!(!text.contains('\x1b') && text.contains("'a b'"), "{text}");
    }

    #[test]
    fn addresses_and_refusals_are_in_words() {
        const ECONNREFUSED: u32 = 111;
        let action = SocketAction {
            kind: Socket::Connected.into(),
            address: vec![127, 0, 0, 1],
            port: 22,
            errno: ECONNREFUSED,
            ..SocketAction::default()
        };
        assert!(text(Body::SocketAction(action)).starts_with("net: to 127.0.0.1:22 ("));
        let hidden = SocketAction { path: b"\0x".to_vec(), ..SocketAction::default() };
        assert_eq!(text(Body::SocketAction(hidden)), "net: to @x");
    }

    #[test]
    fn a_setuid_bit_stands_out() {
        let mode = |mode| FileAction { kind: File::Mode.into(), mode, path: b"/x".to_vec(), ..FileAction::default() };
        assert!(matches!(describe(&Body::FileAction(mode(0o4755))), Some((Style::Warn, _))));
        assert!(matches!(describe(&Body::FileAction(mode(0o755))), Some((Style::Dim, _))));
    }
}
