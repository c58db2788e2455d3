//! Which link a program outside the session has to what the session asked for. Pure: what the system says is asked of [`Around`].

use std::{net::IpAddr, time::Duration};

use breakglass_api::v1::{self, WitnessLink, witness_link::Kind};

use super::{
    Ancestor,
    around::Around,
    requests::{Asked, Requests, Written},
};

/// Ancestors that are looked at.
pub const DEPTH_MAX: usize = 32;
/// Longest from a request to the service manager to what it starts. It starts at once; a busy host takes its time.
const MANAGER_WAIT: Duration = Duration::from_secs(5);
/// The same for services that have to fetch or unpack something first.
const SERVICE_WAIT: Duration = Duration::from_secs(60);
/// Process 1.
const INIT: u32 = 1;

/// Programs that start what their clients ask for, by the kind of socket that they are asked by.
const CONTAINER_PROGRAMS: [&[u8]; 8] =
    [b"dockerd", b"containerd", b"containerd-shim", b"containerd-shim-runc-v2", b"conmon", b"podman", b"crio", b"runc"];
const MULTIPLEXER_PROGRAMS: [&[u8]; 3] = [b"tmux", b"screen", b"zellij"];
const CRON_PROGRAMS: [&[u8]; 4] = [b"cron", b"crond", b"anacron", b"fcron"];
const AT_PROGRAMS: [&[u8]; 1] = [b"atd"];
const MANAGER_PROGRAMS: [&[u8]; 2] = [b"systemd", b"systemd-executor"];

/// The link of a program, `None` where none is known. `ancestors` begin with its parent.
pub fn link(
    exec: &v1::Exec,
    boot_ns: u64,
    ancestors: &[Ancestor],
    requests: &Requests,
    around: &dyn Around,
) -> Option<WitnessLink> {
    local_login(exec, boot_ns, requests)
        .or_else(|| job(exec, boot_ns, ancestors, requests, around))
        .or_else(|| unit(exec, boot_ns, ancestors, requests, around))
        .or_else(|| service(boot_ns, ancestors, requests))
}

/// A login from this host: the ssh server tells the program whose connection it is, and it is one of the session's.
fn local_login(exec: &v1::Exec, boot_ns: u64, requests: &Requests) -> Option<WitnessLink> {
    let connection = exec.env.iter().find_map(|entry| connection(entry))?;
    let asked = requests.asked().find(|asked| asked.address == Some(connection))?;
    Some(WitnessLink { proven: true, tagged: true, ..from(asked, Kind::LocalLogin, boot_ns) })
}

/// Address of the server and port of the client in `SSH_CONNECTION`, where both ends have the same address.
fn connection(entry: &[u8]) -> Option<(IpAddr, u32)> {
    let value = std::str::from_utf8(entry.strip_prefix(b"SSH_CONNECTION=")?).ok()?;
    let mut words = value.split(' ');
    let (client, port, server) = (words.next()?, words.next()?, words.next()?);
    let server: IpAddr = server.parse().ok()?;
    if client.parse() != Ok(server) {
        return None;
    }
    Some((server.to_canonical(), port.parse().ok()?))
}

/// A job of cron or at. That of at is known by its standard input, which is the file that the session wrote.
fn job(
    exec: &v1::Exec,
    boot_ns: u64,
    ancestors: &[Ancestor],
    requests: &Requests,
    around: &dyn Around,
) -> Option<WitnessLink> {
    let at = if ancestors.iter().any(|ancestor| runs(ancestor, &AT_PROGRAMS)) {
        true
    } else if ancestors.iter().any(|ancestor| runs(ancestor, &CRON_PROGRAMS)) {
        false
    } else {
        return None;
    };
    let mut files = requests.jobs().filter(|written| written.is_for_at() == at);
    if let Some(stdin) = exec.process.filter(|_| at).and_then(|process| around.stdin(process.pid))
        && let Some(own) = files.clone().find(|written| written.path == stdin)
    {
        return Some(WitnessLink { proven: true, tagged: true, ..wrote(own, Kind::Job, boot_ns) });
    }
    files.next().map(|newest| wrote(newest, Kind::Job, boot_ns))
}

/// Of a unit that the session had made, or whose file it wrote.
fn unit(
    exec: &v1::Exec,
    boot_ns: u64,
    ancestors: &[Ancestor],
    requests: &Requests,
    around: &dyn Around,
) -> Option<WitnessLink> {
    let parent = ancestors.first()?;
    if !is_manager(parent) && !ancestors.iter().skip(1).any(is_manager) {
        return None;
    }
    let unit = around.unit(exec.process?.pid)?;
    if let Some(written) = requests.unit(&unit) {
        return Some(WitnessLink { proven: true, ..wrote(written, Kind::Unit, boot_ns) });
    }
    let made = around.transient_since(&unit)?;
    // Logins have transient scopes too; nobody asks for those by the manager's socket.
    let asked = requests.asked().find(|asked| is_near(asked, made) && asks_manager(asked))?;
    let tagged = unit.ends_with(".service");
    Some(WitnessLink { through: unit.into_bytes(), tagged, ..from(asked, Kind::Unit, boot_ns) })
}

/// Whether a request came before a time, by no more than the manager takes.
fn is_near(asked: &Asked, boot_ns: u64) -> bool {
    // Times of files are rounded down to a tick of the clock.
    const TICK: Duration = Duration::from_millis(20);
    let before = (boot_ns + nanoseconds(TICK)).checked_sub(asked.boot_ns);
    before.is_some_and(|before| before <= nanoseconds(MANAGER_WAIT))
}

fn asks_manager(asked: &Asked) -> bool {
    asked.kind == Kind::Manager
}

/// Of a service that the session talked to shortly before.
fn service(boot_ns: u64, ancestors: &[Ancestor], requests: &Requests) -> Option<WitnessLink> {
    let parent = ancestors.first()?;
    requests.asked().find_map(|asked| {
        let after = boot_ns.checked_sub(asked.boot_ns)?;
        let by_manager = is_manager(parent) && after <= nanoseconds(MANAGER_WAIT);
        let matches = match asked.kind {
            Kind::Manager => by_manager,
            Kind::Container => {
                after <= nanoseconds(SERVICE_WAIT)
                    && ancestors.iter().any(|ancestor| runs(ancestor, &CONTAINER_PROGRAMS))
            }
            Kind::Multiplexer => is_from(asked, ancestors) || ancestors.iter().any(|a| runs(a, &MULTIPLEXER_PROGRAMS)),
            // What the service manager listens for, it starts itself.
            Kind::Service if asked.peer.is_some_and(|peer| peer.pid == INIT) => by_manager && is_init(parent),
            Kind::Service => after <= nanoseconds(SERVICE_WAIT) && is_from(asked, ancestors),
            _ => false,
        };
        matches.then(|| from(asked, asked.kind, boot_ns))
    })
}

/// Whether whoever listens at the other end is an ancestor.
fn is_from(asked: &Asked, ancestors: &[Ancestor]) -> bool {
    let Some(peer) = asked.peer.filter(|peer| peer.pid != INIT) else { return false };
    ancestors.iter().any(|ancestor| super::key_of(ancestor.process) == super::key_of(peer))
}

fn is_init(ancestor: &Ancestor) -> bool {
    ancestor.process.pid == INIT
}

fn is_manager(ancestor: &Ancestor) -> bool {
    is_init(ancestor) || runs(ancestor, &MANAGER_PROGRAMS)
}

fn runs(ancestor: &Ancestor, programs: &[&[u8]]) -> bool {
    let name = ancestor.exe.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    programs.contains(&name)
}

fn from(asked: &Asked, kind: Kind, boot_ns: u64) -> WitnessLink {
    let after_ns = boot_ns.saturating_sub(asked.boot_ns);
    WitnessLink { kind: kind.into(), by: asked.by, through: asked.through.clone(), after_ns, ..WitnessLink::default() }
}

fn wrote(written: &Written, kind: Kind, boot_ns: u64) -> WitnessLink {
    let after_ns = boot_ns.saturating_sub(written.boot_ns);
    let through = written.path.clone();
    WitnessLink { kind: kind.into(), by: written.by, through, after_ns, ..WitnessLink::default() }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
