//! Links between a session and what runs outside of it, on a made-up system.

use std::sync::{Arc, Mutex};

use breakglass_api::v1::{
    Event, FileAction, KernelRef, Process, SocketAction, file_action, socket_action, witness_link::Kind,
};

use super::*;

const SECOND: u64 = 1_000_000_000;
const SLOT: u32 = 9;
/// The session's task that asks.
const ASKER: Process = Process { pid: 500, start_ns: 50 * SECOND };
const INIT: Process = Process { pid: 1, start_ns: 0 };

/// Processes, units and standard inputs of a system that never was.
#[derive(Default)]
struct Fake {
    processes: Vec<(Process, Option<Process>, &'static [u8])>,
    unit: Option<&'static str>,
    transient: Option<u64>,
    stdin: Option<&'static [u8]>,
}

impl Around for Fake {
    fn process(&self, process: Process) -> Option<(Option<Process>, Vec<u8>)> {
        let found = self.processes.iter().find(|(known, ..)| key_of(*known) == key_of(process))?;
        Some((found.1, found.2.to_vec()))
    }

    fn unit(&self, _pid: u32) -> Option<String> {
        self.unit.map(str::to_owned)
    }

    fn transient_since(&self, _unit: &str) -> Option<u64> {
        self.transient
    }

    fn stdin(&self, _pid: u32) -> Option<Vec<u8>> {
        self.stdin.map(<[u8]>::to_vec)
    }
}

#[derive(Clone, Default)]
struct Followed(Arc<Mutex<Vec<ProcessId>>>);

impl Follow for Followed {
    fn follow(&mut self, process: ProcessId, slot: u32) -> bool {
        assert_eq!(slot, SLOT);
        self.0.lock().unwrap().push(process);
        true
    }
}

struct Case {
    links: Links,
    followed: Followed,
}

impl Case {
    fn new(fake: Fake) -> Self {
        let followed = Followed::default();
        Self { links: Links::new(Box::new(followed.clone()), Box::new(fake)), followed }
    }

    fn says(&mut self, at: u64, ring: Ring, slot: u32, body: Body) -> Option<WitnessLink> {
        let origin = KernelRef { ring: ring.into(), ..KernelRef::default() };
        let event = Event { boot_ns: at, origin: Some(origin), body: Some(body), ..Event::default() };
        let mut observed = Observed { slot, event };
        self.links.look_at(&mut observed);
        match observed.event.body {
            Some(Body::Exec(exec)) => exec.link,
            _ => None,
        }
    }

    fn connects(&mut self, at: u64, path: &[u8], peer: Option<Process>) {
        let action = SocketAction {
            process: Some(ASKER),
            kind: socket_action::Kind::Connected.into(),
            family: 1,
            path: path.to_vec(),
            peer,
            ..SocketAction::default()
        };
        self.says(at, Ring::Audit, SLOT, Body::SocketAction(action));
    }

    fn writes(&mut self, at: u64, path: &[u8]) {
        let action = FileAction {
            process: Some(ASKER),
            kind: file_action::Kind::Opened.into(),
            path: path.to_vec(),
            ..FileAction::default()
        };
        self.says(at, Ring::Audit, SLOT, Body::FileAction(action));
    }

    fn runs(&mut self, at: u64, pid: u32, parent: Process, env: &[&[u8]]) -> Option<WitnessLink> {
        let exec = Exec {
            process: Some(Process { pid, start_ns: at }),
            parent: Some(parent),
            exe: b"/bin/sh".to_vec(),
            env: env.iter().map(|entry| entry.to_vec()).collect(),
            ..Exec::default()
        };
        self.says(at, Ring::Witness, SLOT, Body::Exec(exec))
    }

    fn followed(&self) -> Vec<u32> {
        self.followed.0.lock().unwrap().iter().map(|process| process.tgid).collect()
    }
}

fn with_init(mut fake: Fake) -> Fake {
    fake.processes.push((INIT, None, b"/usr/lib/systemd/systemd"));
    fake
}

#[test]
fn without_a_request_nothing_is_linked() {
    let mut case = Case::new(with_init(Fake::default()));
    assert_eq!(case.runs(SECOND, 700, INIT, &[]), None);
}

#[test]
fn what_the_service_manager_starts_at_once_is_a_hint_and_not_followed() {
    let mut case = Case::new(with_init(Fake { unit: Some("postgresql.service"), ..Fake::default() }));
    case.connects(10 * SECOND, b"/run/systemd/private", Some(INIT));
    let link = case.runs(10 * SECOND + 7, 700, INIT, &[]).unwrap();
    assert_eq!((link.kind(), link.by, link.after_ns), (Kind::Manager, Some(ASKER), 7));
    assert_eq!((link.proven, link.tagged), (false, false), "a service that was restarted must live on");
    assert_eq!(link.through, b"/run/systemd/private");
    assert_eq!(case.runs(20 * SECOND, 701, INIT, &[]), None, "ten seconds later it is something else");
    assert!(case.followed().is_empty());
}

#[test]
fn children_of_what_is_linked_are_linked() {
    let mut case = Case::new(with_init(Fake::default()));
    case.connects(10 * SECOND, b"/run/dbus/system_bus_socket", None);
    case.runs(11 * SECOND, 700, INIT, &[]).unwrap();
    let parent = Process { pid: 700, start_ns: 11 * SECOND };
    let link = case.runs(900 * SECOND, 800, parent, &[]).unwrap();
    assert_eq!(link.kind(), Kind::Manager);
}

#[test]
fn a_transient_unit_is_followed() {
    let fake = Fake { unit: Some("run-u7.service"), transient: Some(10 * SECOND + 5), ..Fake::default() };
    let mut case = Case::new(with_init(fake));
    case.connects(10 * SECOND, b"/run/systemd/private", Some(INIT));
    // A timer fires long after it was asked for.
    let link = case.runs(500 * SECOND, 700, INIT, &[]).unwrap();
    assert_eq!((link.kind(), &link.through[..], link.tagged), (Kind::Unit, &b"run-u7.service"[..], true));
    assert_eq!(case.followed(), [700]);
}

#[test]
fn a_transient_unit_of_another_time_is_somebody_elses() {
    let fake = Fake { unit: Some("run-u7.service"), transient: Some(2 * SECOND), ..Fake::default() };
    let mut case = Case::new(with_init(fake));
    case.connects(10 * SECOND, b"/run/systemd/private", Some(INIT));
    assert_eq!(case.runs(500 * SECOND, 700, INIT, &[]), None);
    assert!(case.followed().is_empty());
}

#[test]
fn a_unit_whose_file_the_session_wrote_is_proven_and_lives_on() {
    for path in ["/etc/systemd/system/backup.service", "/etc/systemd/system/backup.service.d/override.conf"] {
        let mut case = Case::new(with_init(Fake { unit: Some("backup.service"), ..Fake::default() }));
        case.writes(SECOND, path.as_bytes());
        let link = case.runs(700 * SECOND, 700, INIT, &[]).unwrap();
        assert_eq!((link.kind(), link.proven, link.tagged), (Kind::Unit, true, false));
        assert_eq!(link.through, path.as_bytes());
    }
    let mut case = Case::new(with_init(Fake { unit: Some("up.service"), ..Fake::default() }));
    case.writes(SECOND, b"/etc/systemd/system/backup.service");
    assert_eq!(case.runs(2 * SECOND, 700, INIT, &[]), None);
}

#[test]
fn a_job_of_at_is_known_by_its_standard_input() {
    let atd = Process { pid: 60, start_ns: SECOND };
    let file: &[u8] = b"/var/spool/cron/atjobs/a0000101c2b3a4";
    for (stdin, certain) in [(Some(file), true), (Some(&b"/dev/null"[..]), false), (None, false)] {
        let mut fake = with_init(Fake { stdin, ..Fake::default() });
        fake.processes.push((atd, Some(INIT), b"/usr/sbin/atd"));
        let mut case = Case::new(fake);
        case.writes(10 * SECOND, file);
        let link = case.runs(100 * SECOND, 700, atd, &[]).unwrap();
        assert_eq!((link.kind(), link.proven, link.tagged), (Kind::Job, certain, certain), "{stdin:?}");
        assert_eq!(case.followed().len(), usize::from(certain));
    }
}

#[test]
fn cron_is_a_hint_for_as_long_as_the_session_lasts() {
    let cron = Process { pid: 61, start_ns: SECOND };
    let mut fake = with_init(Fake::default());
    fake.processes.push((cron, Some(INIT), b"/usr/sbin/cron"));
    let mut case = Case::new(fake);
    case.writes(9 * SECOND, b"/var/spool/cron/atjobs/a1");
    assert_eq!(case.runs(10 * SECOND, 699, cron, &[]), None, "a job of at is nothing to cron");
    case.writes(10 * SECOND, b"/etc/cron.d/evil");
    case.writes(11 * SECOND, b"/var/spool/cron/atjobs/a2");
    let link = case.runs(3000 * SECOND, 700, cron, &[]).unwrap();
    assert_eq!((link.kind(), link.proven, link.tagged), (Kind::Job, false, false));
    assert_eq!(link.through, b"/etc/cron.d/evil");
}

#[test]
fn a_login_to_this_host_is_known_by_its_port() {
    let sshd = Process { pid: 62, start_ns: SECOND };
    let mut fake = with_init(Fake::default());
    fake.processes.push((sshd, Some(INIT), b"/usr/sbin/sshd"));
    let mut case = Case::new(fake);
    let connect = |address: &[u8], local_port| {
        Body::SocketAction(SocketAction {
            process: Some(ASKER),
            kind: socket_action::Kind::Connected.into(),
            family: 2,
            address: address.to_vec(),
            port: 22,
            local_port,
            ..SocketAction::default()
        })
    };
    case.says(SECOND, Ring::Audit, SLOT, connect(&[127, 0, 0, 1], 40_000));
    case.says(SECOND, Ring::Audit, SLOT, connect(&[10, 0, 0, 9], 40_001));
    let link = case.runs(2 * SECOND, 700, sshd, &[b"TERM=x", b"SSH_CONNECTION=127.0.0.1 40000 127.0.0.1 22"]).unwrap();
    assert_eq!((link.kind(), link.proven, link.tagged), (Kind::LocalLogin, true, true));
    assert_eq!(link.through, b"127.0.0.1 port 22");
    for other in
        ["127.0.0.1 40009 127.0.0.1 22", "127.0.0.1 40001 127.0.0.1 22", "10.0.0.3 40000 127.0.0.1 22", "", "x y"]
    {
        let entry = format!("SSH_CONNECTION={other}");
        assert_eq!(case.runs(2 * SECOND, 701, sshd, &[entry.as_bytes()]), None, "{other}");
    }
    assert_eq!(case.followed(), [700]);
}

#[test]
fn a_service_is_known_by_who_listens() {
    let tmux = Process { pid: 63, start_ns: 3 * SECOND };
    let other = Process { pid: 64, start_ns: 4 * SECOND };
    for (path, kind, late) in
        [(&b"/tmp/tmux-0/default"[..], Kind::Multiplexer, true), (b"/run/some.sock", Kind::Service, false)]
    {
        let mut fake = with_init(Fake::default());
        fake.processes.push((tmux, Some(INIT), b"/usr/bin/server"));
        fake.processes.push((other, Some(INIT), b"/usr/bin/other"));
        let mut case = Case::new(fake);
        case.connects(10 * SECOND, path, Some(tmux));
        let link = case.runs(11 * SECOND, 700, tmux, &[]).unwrap();
        assert_eq!((link.kind(), link.proven, link.tagged), (kind, false, false));
        assert_eq!(case.runs(11 * SECOND, 701, other, &[]), None);
        assert_eq!(case.runs(1000 * SECOND, 702, tmux, &[]).is_some(), late, "{kind:?}");
    }
}

#[test]
fn containers_are_known_by_their_runtime() {
    let shim = Process { pid: 65, start_ns: 5 * SECOND };
    let mut fake = with_init(Fake::default());
    fake.processes.push((shim, Some(INIT), b"/usr/bin/containerd-shim-runc-v2"));
    let mut case = Case::new(fake);
    case.connects(10 * SECOND, b"/var/run/docker.sock", Some(INIT));
    assert_eq!(case.runs(11 * SECOND, 700, shim, &[]).unwrap().kind(), Kind::Container);
}

#[test]
fn the_next_session_begins_with_nothing() {
    let mut case = Case::new(with_init(Fake::default()));
    case.connects(10 * SECOND, b"/run/systemd/private", Some(INIT));
    let exec = Exec { process: Some(Process { pid: 700, start_ns: 1 }), parent: Some(INIT), ..Exec::default() };
    assert_eq!(case.says(10 * SECOND + 1, Ring::Witness, SLOT + 1, Body::Exec(exec)), None);
}

#[test]
fn what_everybody_connects_to_is_no_request() {
    let mut case = Case::new(with_init(Fake::default()));
    case.connects(10 * SECOND, b"/run/systemd/journal/stdout", Some(INIT));
    case.connects(10 * SECOND, b"/var/run/nscd/socket", None);
    assert!(case.links.requests.is_empty());
}

#[test]
fn no_more_is_remembered_than_there_is_room_for() {
    let mut case = Case::new(with_init(Fake::default()));
    for number in 0..5_000_u32 {
        case.connects(SECOND, b"/run/x", None);
        case.writes(SECOND, format!("/etc/cron.d/{number}").as_bytes());
        case.runs(SECOND, 1000 + number, INIT, &[]);
    }
    assert_eq!(case.links.known.len(), REMEMBERED_MAX);
    assert_eq!(case.links.oldest.len(), REMEMBERED_MAX);
    assert_eq!(case.links.requests.asked().count(), 1024);
    assert_eq!(case.links.requests.jobs().count(), 1024);
}
