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
pub mod fold;
pub mod listen;
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
    fold::Refusals,
    verifier::Verifier,
};
pub use self::{listen::ControlError, source::Source};
use crate::grant::{Refusal, VerifiedClose, VerifiedGrant};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
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
    /// Records that the agent is to stop, locks, and has it end; answers before it does. Only root on the host gets this far.
    fn stop(
        &self,
        request: v1::StopRequest,
        source: Source,
    ) -> impl Future<Output = Result<v1::Stopping, Refusal>> + Send;
    /// Records refused requests; `count` says how many equal ones it stands for.
    fn refused(&self, refused: v1::ProofRefused) -> impl Future<Output = ()> + Send;
    /// Where the host stands; callers that are not local get less.
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

/// The doors, open.
#[derive(Debug)]
pub struct ControlHandle {
    address: Option<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
    files: Vec<PathBuf>,
}

impl ControlHandle {
    /// Where TLS is served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
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

/// Opens the doors; they close when `shutdown` turns true. Returns once both accept connections.
pub async fn serve<S: Sessions>(
    options: Options,
    sessions: Arc<S>,
    verifier: Arc<Verifier>,
    shutdown: watch::Receiver<bool>,
) -> Result<ControlHandle, ControlError> {
    listen::public_folder(&options.runtime)?;
    verifier.prepare();
    let tls = match options.listen {
        Some(address) => {
            let acceptor = TlsAcceptor::from(listen::tls(&options.enrolment)?);
            let (listener, real) = listen::tcp(address, &options.runtime).await?;
            Some((acceptor, listener, real))
        }
        None => None,
    };
    let unix = listen::unix(&options.socket)?;
    let shared = Arc::new(Shared {
        sessions,
        verifier,
        checks: Checks::default(),
        guesses: Checks::of_codes(),
        refusals: Refusals::default(),
    });

    let mut handle = ControlHandle { address: None, tasks: Vec::new(), files: vec![options.socket] };
    let mut doors = vec![tokio::spawn(serve_unix(unix, Arc::clone(&shared), shutdown.clone()))];
    if let Some((acceptor, listener, real)) = tls {
        handle.address = Some(real);
        handle.files.push(options.runtime.join(listen::ADDRESS_FILE));
        doors.push(tokio::spawn(serve_tls(listener, acceptor, Arc::clone(&shared), shutdown)));
    }
    handle.tasks.push(tokio::spawn(record_refusals(shared, doors)));
    Ok(handle)
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
        let source = Source::Unix { pid: peer.pid().unwrap_or(0), uid: peer.uid() };
        let Some(ticket) = admission.admit(source.group()) else { continue };
        let (shared, mut shutdown) = (Arc::clone(&shared), shutdown.clone());
        connections.spawn(async move {
            serve_until(connection::serve(shared, stream, source, &ticket), &ticket, &mut shutdown).await;
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
                    serve_until(connection::serve(shared, stream, source, &ticket), &ticket, &mut shutdown).await;
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
