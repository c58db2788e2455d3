//! What operators' requests do: the bridge from the control port to the session manager.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use breakglass_api::v1::{self, CloseCause, ProofRefused, event::Body};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    grant::{Grant, SessionError},
    host::Host,
    machine::Machine as _,
    manager::{Journal, Manager},
};
use crate::{
    blocking,
    control::{CloseBy, Permit, Sessions, Source, code::CodeGrant, peer::Peer},
    grant::{Refusal, VerifiedGrant, quorum::Cosigned},
    kernel::ProcessId,
    recorder::Recorder,
    regular,
    ship::ShipObserver,
    spool::SpoolReader,
};

/// Most host keys that are handed out with a grant; a host has three or four.
const HOST_KEYS_MAX: usize = 16;

/// Largest public key file, bytes.
pub(super) const HOST_KEY_SIZE_MAX: u64 = 16 * 1024;

/// What a host says of itself whatever happens.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The host's id.
    pub host_id: String,
    /// The name that operators use.
    pub host_name: String,
    /// Why the tier is no better; empty for the best.
    pub tier_reason: String,
    /// sshd's port.
    pub ssh_port: u16,
    /// Folder with sshd's public host keys.
    pub ssh_host_keys: PathBuf,
    /// Why the spool is in memory; empty where it is on disk.
    pub spool_in_memory: String,
}

/// Answers operators.
pub struct Service {
    manager: Manager<Host, Recorder>,
    facts: Facts,
    /// A reader may be sent between threads, not shared.
    spool: Mutex<SpoolReader>,
    recorder: Recorder,
    shipping: Option<ShipObserver>,
    /// Has the daemon end, saying why.
    stop: mpsc::Sender<String>,
}

impl Service {
    /// `shipping` is absent where no collector is configured.
    pub fn new(
        manager: Manager<Host, Recorder>,
        facts: Facts,
        spool: SpoolReader,
        recorder: Recorder,
        shipping: Option<ShipObserver>,
        stop: mpsc::Sender<String>,
    ) -> Self {
        Self { manager, facts, spool: Mutex::new(spool), recorder, shipping, stop }
    }
}

impl Sessions for Service {
    async fn open(&self, permit: Permit, source: Source) -> Result<v1::Opened, Refusal> {
        let grant = match permit {
            Permit::Signed(grant) => session_grant(*grant, source)?,
            Permit::Code(grant) => code_grant(*grant),
        };
        let mut warnings = grant.warnings.clone();
        let opened = self.manager.open(grant).await.map_err(refusal)?;
        let ttl_seconds = super::clock::until(opened.deadline_boot_ns).as_secs_f64().round() as u64;
        let folder = self.facts.ssh_host_keys.clone();
        let (ssh_host_keys, missing) = blocking::run(move || host_keys(&folder)).await;
        warnings.extend(missing);
        let machine = self.manager.machine();
        Ok(v1::Opened {
            session: opened.session.to_string(),
            account: machine.account().0,
            ttl_seconds,
            deadline_boot_ns: opened.deadline_boot_ns,
            ssh_host_keys,
            ssh_port: u32::from(self.facts.ssh_port),
            tier: machine.tier().to_string(),
            agent_us: u64::try_from(opened.took.as_micros()).unwrap_or(u64::MAX),
            warnings,
            extended: opened.extended,
        })
    }

    async fn ready(&self) -> Result<(), Refusal> {
        self.manager.can_record().await.map_err(refusal)
    }

    async fn logged_in(&self, notice: v1::LoginNotice) {
        self.manager.logged_in(notice).await;
    }

    async fn close(&self, by: CloseBy, source: Source) -> Result<v1::Closed, Refusal> {
        let (cause, who, named) = match by {
            CloseBy::Root => (CloseCause::HostRoot, "root".to_owned(), String::new()),
            CloseBy::Account => (CloseCause::Operator, "the emergency account".to_owned(), String::new()),
            CloseBy::Operator(close) => (CloseCause::Operator, close.signer.principal, close.text.session),
        };
        let named = session_named(&named)?;
        let (session, closed) =
            self.manager.close(named, cause, &format!("{who} ({source})")).await.map_err(refusal)?;
        Ok(v1::Closed {
            session: session.to_string(),
            killed: closed.killed,
            survivors: u32::try_from(closed.survivors.len()).unwrap_or(u32::MAX),
        })
    }

    async fn stop(&self, request: v1::StopRequest, source: Source, peer: Peer) -> Result<v1::Stopping, Refusal> {
        self.check_stopper(source, &peer).await?;
        let by = source.to_string();
        let ended = self.manager.retire(&request.reason, &by, request.force).await.map_err(refusal)?;
        // The daemon takes one and ends; nobody can ask twice.
        let _ = self.stop.try_send(format!("{}, asked for by {by}", request.reason));
        Ok(v1::Stopping { session: ended.map(|session| session.to_string()).unwrap_or_default() })
    }

    async fn refused(&self, refused: ProofRefused) {
        tracing::warn!(code = refused.code, source = refused.source, count = refused.count, "a proof was refused");
        if let Err(error) = self.manager.journal().record(None, Body::ProofRefused(refused)).await {
            tracing::error!(%error, "a refused proof could not be recorded");
        }
    }

    async fn alert(&self, alert: v1::Alert) {
        if let Err(error) = self.manager.journal().record(None, Body::Alert(alert)).await {
            tracing::error!(%error, "an alert could not be recorded");
        }
    }

    async fn status(&self, local: bool) -> v1::Status {
        let view = self.manager.view();
        let machine = self.manager.machine();
        let mut status = v1::Status {
            host_id: self.facts.host_id.clone(),
            hostname: self.facts.host_name.clone(),
            state: view.state.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            tier: machine.tier().to_string(),
            tier_reason: self.facts.tier_reason.clone(),
            account: machine.account().0,
            ..v1::Status::default()
        };
        if local {
            self.add_local(&mut status).await;
        }
        status
    }
}

impl Service {
    /// Whoever is of the open session has root there, and may not end its record.
    async fn check_stopper(&self, source: Source, peer: &Peer) -> Result<(), Refusal> {
        let (Some(open), Source::Unix { pid, .. }) = (self.manager.view().session, source) else { return Ok(()) };
        let slot = open.slot;
        let live = self.manager.on_machine(move |m| m.live(slot)).await;
        let Err(why) = outside(pid, &live, peer) else { return Ok(()) };
        let message = format!("{source}, {why}, asked the agent to stop");
        tracing::error!("{message}");
        let alert = v1::Alert { code: "stop-refused".into(), message, process: None };
        if let Err(error) = self.manager.journal().record(Some(open.session), Body::Alert(alert)).await {
            tracing::error!(%error, "an alert could not be recorded");
        }
        Err(Refusal::new(
            "not-allowed",
            format!("{why}, may not stop the agent; close the session first: breakglass close"),
        ))
    }

    /// What only those may know who are on the host already.
    async fn add_local(&self, status: &mut v1::Status) {
        if let Some(session) = self.manager.view().session {
            status.session = session.session.to_string();
            status.remaining_seconds = super::clock::until(session.deadline_boot_ns).as_secs();
            status.operator = session.operator;
            status.reason = session.reason;
            let slot = session.slot;
            status.live_processes = self.manager.on_machine(move |m| m.live(slot)).await.len() as u32;
        }
        let counts = self.manager.on_machine(|m| m.counts()).await;
        status.records = counts.produced.to_vec();
        status.missing = counts.missing.to_vec();
        {
            let spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
            (status.spool_frames, status.spool_bytes) = spool.backlog();
            status.spool_in_memory.clone_from(&self.facts.spool_in_memory);
        }
        (status.last_seq, status.durable_boot_ns) = self.recorder.stats().durable;
        if let Some(shipping) = &self.shipping {
            let shipping = shipping.status();
            status.acked_seq = shipping.acked_seq;
            status.acked_boot_ns = shipping.acked_boot_ns;
            status.collector_connected = shipping.connected;
            status.collector_error = shipping.wrong().unwrap_or_default();
        }
    }
}

impl Journal for Recorder {
    async fn record(&self, session: Option<Uuid>, body: Body) -> Result<u64, String> {
        Recorder::record(self, session, body).await.map_err(|e| e.to_string())
    }

    fn name_session(&self, slot: u32, session: Uuid) {
        Recorder::name_session(self, slot, session);
    }

    async fn barrier(&self) -> Result<u64, String> {
        Recorder::barrier(self).await.map_err(|e| e.to_string())
    }
}

fn refusal(error: SessionError) -> Refusal {
    Refusal::new(error.code(), error.to_string())
}

/// Whether who asks is for certain no process of a session whose processes these are; otherwise what it may be.
fn outside(pid: i32, live: &[ProcessId], peer: &Peer) -> Result<(), &'static str> {
    // The kernel does not name processes that it does not show us.
    if pid <= 0 || live.iter().any(|process| i64::from(process.tgid) == i64::from(pid)) {
        return Err("a process of the session");
    }
    // One that has ended is in no list, and what speaks is somebody who has its descriptor. Asked for after the list was made: whoever lives now
    // had its number then.
    match peer.is_alive() {
        true => Ok(()),
        false => Err("a process that ended after it had connected, so perhaps of the session"),
    }
}

/// Which session is meant; an empty name means whichever is open.
fn session_named(name: &str) -> Result<Option<Uuid>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    Uuid::parse_str(name).map(Some).map_err(|_| {
        Refusal::new("bad-session", format!("{:?} is not a session's id; leave it out to close the open one", name))
    })
}

fn session_grant(grant: VerifiedGrant, source: Source) -> Result<Grant, Refusal> {
    let key = grant
        .signer
        .public_key()
        .map_err(|e| Refusal::new("weak-key", format!("the key cannot be written for sshd: {e}; sign with another")))?;
    Ok(Grant {
        operator: grant.signer.principal.clone(),
        key: Some(key),
        by_code: false,
        key_fingerprint: grant.signer.fingerprint(),
        key_type: grant.signer.key_type(),
        ttl: grant.ttl(),
        certificate: grant.signer.certificate(),
        reason: grant.terms.reason,
        ticket: grant.terms.ticket,
        close_on_exit: grant.terms.close_on_exit,
        text: grant.signed.text,
        signature: grant.signed.signature,
        source: source.to_string(),
        cosigners: grant.cosigned.into_iter().map(cosigner).collect(),
        warnings: grant.warnings,
    })
}

fn cosigner(cosigned: Cosigned) -> v1::Cosigner {
    v1::Cosigner {
        key_fingerprint: cosigned.signer.fingerprint(),
        key_type: cosigned.signer.key_type(),
        certificate: cosigned.signer.certificate(),
        principal: cosigned.signer.principal,
        signature: cosigned.signature,
    }
}

fn code_grant(grant: CodeGrant) -> Grant {
    let (key, key_fingerprint) = grant.key_and_fingerprint().unzip();
    Grant {
        operator: grant.operator(),
        key,
        key_fingerprint: key_fingerprint.unwrap_or_default(),
        key_type: "one-time-code".into(),
        by_code: true,
        reason: grant.reason,
        ticket: grant.ticket,
        ttl: grant.ttl,
        close_on_exit: grant.close_on_exit,
        source: grant.source,
        warnings: grant.warnings,
        ..Grant::default()
    }
}

/// sshd's public host keys, and what the operator should know if there are none.
fn host_keys(folder: &Path) -> (Vec<String>, Vec<String>) {
    let mut keys: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            (name.starts_with("ssh_host_") && name.ends_with("_key.pub")).then(|| entry.path())
        })
        .take(HOST_KEYS_MAX)
        .filter_map(|path| host_key(&path))
        .collect();
    keys.sort();
    let warnings = match keys.is_empty() {
        true => vec![format!("no public host key in {}: ssh cannot be told whom to trust", folder.display())],
        false => Vec::new(),
    };
    (keys, warnings)
}

/// Type and key of a `ssh_host_*_key.pub`, without its comment.
fn host_key(path: &Path) -> Option<String> {
    let text = regular::read_to_string(path, HOST_KEY_SIZE_MAX).ok()?;
    let mut words = text.split_ascii_whitespace();
    Some(format!("{} {}", words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_lives_and_is_not_of_the_session_is_outside_of_it() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let peer = Peer::numbered(pid);
        let process = |tgid| ProcessId { tgid, start_ns: 1 };
        let others = [process(child.id() + 1)];
        assert_eq!(outside(pid, &others, &peer), Ok(()));
        assert!(outside(pid, &[others[0], process(child.id())], &peer).is_err(), "of the session");
        assert!(outside(0, &others, &peer).is_err(), "not named by the kernel");
        assert!(outside(pid, &others, &Peer::default()).is_err(), "not known");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(outside(pid, &others, &peer).is_err(), "it has ended");
    }

    #[test]
    fn host_keys_come_without_comments() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ssh_host_ed25519_key.pub"), "ssh-ed25519 AAAA root@host\n").unwrap();
        std::fs::write(folder.path().join("ssh_host_ed25519_key"), "secret").unwrap();
        std::fs::write(folder.path().join("ssh_host_big_key.pub"), vec![b'x'; 20_000]).unwrap();
        // What a session may leave: whoever opens it waits.
        regular::tests::trap(&folder.path().join("ssh_host_rsa_key.pub"));
        let path = folder.path().to_owned();
        let found = regular::tests::untrapped(move || host_keys(&path));
        assert_eq!(found, (vec!["ssh-ed25519 AAAA".to_owned()], vec![]));
        let (keys, warnings) = host_keys(&folder.path().join("none"));
        assert!(keys.is_empty() && warnings.len() == 1);
    }
}
