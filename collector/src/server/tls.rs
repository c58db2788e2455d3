//! TLS 1.3 with certificates on both sides, from the private CA. Only a host that joins has none yet.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::sources::{Place, Sources};
use crate::pki::read_private_key;
use crate::settings::Layout;

/// How long a peer may take to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that are proving who they are at the same time, of all sources; see [`Sources`] for each. Those who have are bounded by the certificates issued.
const HANDSHAKES_MAX: usize = 256;
/// Pause after the system refuses a connection (out of file descriptors, mostly), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections without a certificate: hosts that join. How many there may be, and how long one may last.
const GUESTS_MAX: usize = 32;
const GUEST_LIMIT: Duration = Duration::from_secs(30);

/// A connection whose peer has proved that the CA knows it, or has come to join.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    guest: Option<Guest>,
}

/// What bounds a connection without a certificate.
struct Guest {
    until: Pin<Box<Sleep>>,
    _places: (OwnedSemaphorePermit, Place),
}

impl Connection {
    /// Fails once a guest has been here for too long.
    fn check(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        let over = self.guest.as_mut().is_some_and(|guest| guest.until.as_mut().poll(context).is_ready());
        if over { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The acceptor, from the certificate and keys of a collector's folder.
pub fn acceptor(layout: &Layout) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in certificates(&layout.ca_cert())? {
        roots.add(ca).with_context(|| format!("{} is not a CA certificate", layout.ca_cert().display()))?;
    }
    // A host that joins has no certificate yet. What a connection without one may call, `access` decides: Enrol.Join.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("cannot verify clients")?;
    let key_path = layout.key();
    let key = PrivateKeyDer::from_pem_slice(read_private_key(&key_path)?.as_bytes())
        .with_context(|| format!("{} is not a private key", key_path.display()))?;
    // With the CA's own: a host that joins knows its hash, from the token.
    let chain = [certificates(&layout.cert())?, certificates(&layout.ca_cert())?].concat();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not available")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .with_context(|| format!("{} and {} do not belong together", layout.cert().display(), key_path.display()))?;
    // gRPC is HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certs = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certs = certs.with_context(|| format!("{} is not a PEM certificate", path.display()))?;
    anyhow::ensure!(!certs.is_empty(), "{} holds no certificate", path.display());
    Ok(certs)
}

/// Accepts connections for ever and passes on those whose handshake succeeds. Ends when nobody receives any more.
pub async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<std::io::Result<Connection>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let guests = Arc::new(Semaphore::new(GUESTS_MAX));
    let sources = Sources::default();
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(place) = sources.place(from.ip()) else {
                    // Closed at once; no more than a line for those who ask for it, as there may be many.
                    tracing::debug!(%from, "refused a connection: its source has too many that prove nothing");
                    continue;
                };
                let held = (permit, place);
                tokio::spawn(handshake(acceptor.clone(), stream, from, ready.clone(), guests.clone(), held));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: std::net::SocketAddr,
    ready: mpsc::Sender<std::io::Result<Connection>>,
    guests: Arc<Semaphore>,
    (permit, place): (OwnedSemaphorePermit, Place),
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %from, "cannot set TCP_NODELAY");
    }
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            drop(permit);
            let Some(connection) = admit(stream, guests, place) else {
                return tracing::warn!(%from, "refused a connection without a certificate: there are too many");
            };
            // Fails only when the server is shutting down.
            let _ = ready.send(Ok(connection)).await;
        }
        Ok(Err(error)) => tracing::warn!(%error, %from, "refused a connection: the TLS handshake failed"),
        Err(_) => tracing::warn!(%from, "refused a connection: the TLS handshake took too long"),
    }
}

/// A connection with what bounds it; none if there is no place for one more without a certificate.
fn admit(stream: TlsStream<TcpStream>, guests: Arc<Semaphore>, place: Place) -> Option<Connection> {
    let guest = match stream.get_ref().1.peer_certificates() {
        Some(_) => None,
        None => {
            let places = (guests.try_acquire_owned().ok()?, place);
            Some(Guest { until: Box::pin(tokio::time::sleep(GUEST_LIMIT)), _places: places })
        }
    };
    Some(Connection { stream, guest })
}
