//! What operators call: length-prefixed protobuf over a Unix socket and over TLS (docs/PROTOCOL.md).
//!
//! Callers have proved nothing yet, so everything that they can make the agent hold or do is bounded: the size of a
//! message and the time for it ([`wire`]), the number of connections ([`admission`]), the processor time for proofs
//! ([`cost`]) and the record of refusals ([`fold`]).

pub mod admission;
pub mod code;
pub mod connection;
pub mod cost;
pub mod counters;
pub mod door;
pub mod fold;
pub mod listen;
pub mod peer;
pub mod source;
#[cfg(test)]
mod tests;
pub mod used;
pub mod verifier;
pub mod wire;

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use breakglass_api::v1;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::{
    admission::{Admission, TLS_GRACE},
    code::CodeGrant,
    connection::Shared,
    cost::Checks,
    door::Door,
    fold::Refusals,
    peer::Peer,
    verifier::Verifier,
};
pub use self::{listen::ControlError, source::Source};
use crate::grant::{Refusal, VerifiedClose, VerifiedGrant};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a start waits to learn whether the TLS door can be opened. It can at once, or something is in the way for longer.
const FIRST_TRY: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests that are being worked on may take at shutdown. Closing a session takes a second.
const DRAIN: Duration = Duration::from_secs(10);

/// Who asks for a session to be closed.
#[derive(Clone, Debug)]
pub enum CloseBy {
    /// Root on this host.
    Root,
    /// The emergency account itself.
    Account,
    /// Somebody who proved who they are.
    Operator(Box<VerifiedClose>),
}

/// What allows to break the glass.
#[derive(Clone, Debug)]
pub enum Permit {
    /// Signatures.
    Signed(Box<VerifiedGrant>),
    /// A one-time code, which is burnt.
    Code(Box<CodeGrant>),
}

/// What becomes of requests that are allowed.
pub trait Sessions: Send + Sync + 'static {
    /// Breaks the glass. Runs to its end even if the caller goes away. `agent_us` of the answer is filled in by the caller.
    fn open(&self, permit: Permit, source: Source) -> impl Future<Output = Result<v1::Opened, Refusal>> + Send;
    /// Whether the glass could be broken now; asked before a one-time code is burnt.
    fn ready(&self) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Records that somebody logged in, as the PAM gate says.
    fn logged_in(&self, notice: v1::LoginNotice) -> impl Future<Output = ()> + Send;
    /// Closes the open session. Runs to its end even if the caller goes away.
    fn close(&self, by: CloseBy, source: Source) -> impl Future<Output = Result<v1::Closed, Refusal>> + Send;
    /// Records that the agent is to stop, locks, and has it end; answers before it does. Only root on the host gets this far, as `peer`.
    fn stop(
        &self,
        request: v1::StopRequest,
        source: Source,
        peer: Peer,
    ) -> impl Future<Output = Result<v1::Stopping, Refusal>> + Send;
    /// Records refused requests; `count` says how many equal ones it stands for.
    fn refused(&self, refused: v1::ProofRefused) -> impl Future<Output = ()> + Send;
    /// Records something about the doors that somebody must look at.
    fn alert(&self, alert: v1::Alert) -> impl Future<Output = ()> + Send;
    /// Where the host stands; callers that are not local get less. `door_error` is filled in by the caller.
    fn status(&self, local: bool) -> impl Future<Output = v1::Status> + Send;
}

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unix socket.
    pub socket: PathBuf,
    /// TCP address for TLS.
    pub listen: Option<SocketAddr>,
    /// Folder for `control.addr`.
    pub runtime: PathBuf,
    /// Folder with `host.crt` and `host.key`.
    pub enrolment: PathBuf,
}

impl From<&crate::config::Config> for Options {
    fn from(config: &crate::config::Config) -> Self {
        Self {
            socket: config.control.socket.clone(),
            listen: config.control.listen,
            runtime: config.host.runtime.clone(),
            enrolment: config.host.enrolment.clone(),
        }
    }
}

/// The doors.
#[derive(Debug)]
pub struct ControlHandle {
    door: watch::Receiver<Door>,
    tasks: Vec<JoinHandle<()>>,
    files: Vec<PathBuf>,
}

impl ControlHandle {
    /// Where TLS is served; nowhere while that door cannot be opened.
    pub fn address(&self) -> Option<SocketAddr> {
        self.door.borrow().address()
    }

    /// Resolves when everything has ended after shutdown was asked for: requests that were being worked on are answered,
    /// refusals recorded, socket and address file removed.
    pub async fn stopped(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the control service ended badly");
            }
        }
        for file in &self.files {
            // A new agent may have made them anew already, or they are gone; neither is of interest any more.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Opens the doors; they close when `shutdown` turns true. Fails where the Unix socket cannot be served. The TLS door is tried until it
/// opens; returns once it has been tried.
pub async fn serve<S: Sessions>(
    options: Options,
    sessions: Arc<S>,
    verifier: Arc<Verifier>,
    shutdown: watch::Receiver<bool>,
) -> Result<ControlHandle, ControlError> {
    listen::public_folder(&options.runtime)?;
    verifier.prepare();
    let unix = listen::unix(&options.socket)?;
    listen::forget_address(&options.runtime);
    let (state, mut door) = watch::channel(match options.listen {
        Some(_) => Door::Untried,
        None => Door::Unwanted,
    });
    let shared = Arc::new(Shared {
        sessions,
        verifier,
        checks: Checks::default(),
        guesses: Checks::of_codes(),
        refusals: Refusals::default(),
        door: door.clone(),
    });

    let files = vec![options.socket.clone(), options.runtime.join(listen::ADDRESS_FILE)];
    let mut doors = vec![tokio::spawn(serve_unix(unix, Arc::clone(&shared), shutdown.clone()))];
    if let Some(address) = options.listen {
        doors.push(tokio::spawn(open_and_serve_tls(address, options, Arc::clone(&shared), state, shutdown)));
    }
    let tasks = vec![tokio::spawn(record_refusals(shared, doors))];
    // Whoever waits for the agent may go by TLS next. Without an answer in time it waits no longer.
    let _ = timeout(FIRST_TRY, door.wait_for(|door| *door != Door::Untried)).await;
    Ok(ControlHandle { door, tasks, files })
}

async fn open_and_serve_tls<S: Sessions>(
    address: SocketAddr,
    options: Options,
    shared: Arc<Shared<S>>,
    state: watch::Sender<Door>,
    mut shutdown: watch::Receiver<bool>,
) {
    let (listener, acceptor) = tokio::select! {
        opened = door::open(address, &options, &shared.sessions, &state) => opened,
        _ = shutdown.wait_for(|stop| *stop) => return,
    };
    serve_tls(listener, acceptor, shared, shutdown).await;
}

/// Records refusals until both doors are closed, and then what is left.
async fn record_refusals<S: Sessions>(shared: Arc<Shared<S>>, doors: Vec<JoinHandle<()>>) {
    let mut closed = std::pin::pin!(futures_util::future::join_all(doors));
    loop {
        let refused = tokio::select! {
            refused = shared.refusals.next() => refused,
            _ = &mut closed => break,
        };
        for refused in refused {
            shared.sessions.refused(refused).await;
        }
    }
    for refused in shared.refusals.rest() {
        shared.sessions.refused(refused).await;
    }
}

async fn serve_unix<S: Sessions>(listener: UnixListener, shared: Arc<Shared<S>>, mut shutdown: watch::Receiver<bool>) {
    let admission = Arc::new(Admission::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        // Without credentials nobody can be told from root; such a connection is not served.
        let Ok(peer) = stream.peer_cred() else { continue };
        let (pid, uid) = (peer.pid().unwrap_or(0), peer.uid());
        let source = Source::Unix { pid, uid };
        let Some(ticket) = admission.admit(source.group()) else { continue };
        // Only of root it is asked who exactly it is; for the rest a descriptor would be wasted.
        let peer = if uid == 0 { Peer::of(&stream, pid) } else { Peer::default() };
        let (shared, mut shutdown) = (Arc::clone(&shared), shutdown.clone());
        connections.spawn(async move {
            serve_until(connection::serve(shared, stream, source, peer, &ticket), &ticket, &mut shutdown).await;
        });
    }
    drop(listener);
    drain(connections).await;
}

async fn serve_tls<S: Sessions>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared<S>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let admission = Arc::new(Admission::with_grace(TLS_GRACE));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let source = Source::Tcp(peer);
        let Some(ticket) = admission.admit(source.group()) else { continue };
        let (shared, mut shutdown, acceptor) = (Arc::clone(&shared), shutdown.clone(), acceptor.clone());
        connections.spawn(async move {
            // Requests and answers are single small packets; waiting for more costs 40 ms. Without it all still works.
            let _ = stream.set_nodelay(true);
            let shaken = async {
                shared.checks.turn(source.group()).await;
                timeout(HANDSHAKE, acceptor.accept(stream)).await
            };
            let shake = tokio::select! {
                shake = shaken => shake,
                () = ticket.asked_to_leave() => return,
            };
            match shake {
                Ok(Ok(stream)) => {
                    let served = connection::serve(shared, stream, source, Peer::default(), &ticket);
                    serve_until(served, &ticket, &mut shutdown).await;
                }
                Ok(Err(error)) => tracing::debug!(%source, %error, "no TLS"),
                Err(_) => tracing::debug!(%source, "no TLS in time"),
            }
        });
    }
    drop(listener);
    drain(connections).await;
}

/// Ends a connection at shutdown, but not while its request is being worked on.
async fn serve_until(
    serve: impl Future<Output = ()>,
    ticket: &admission::Ticket,
    shutdown: &mut watch::Receiver<bool>,
) {
    tokio::select! {
        () = serve => {}
        () = async {
            let _ = shutdown.wait_for(|stop| *stop).await;
            ticket.leave_when_idle();
            std::future::pending().await
        } => {}
    }
}

async fn drain(mut connections: JoinSet<()>) {
    let ended = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!(connections = connections.len(), "requests were cut off at shutdown");
    }
}

async fn pause(error: &std::io::Error) {
    tracing::error!(%error, "a connection cannot be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
