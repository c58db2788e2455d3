//! The two doors: a Unix socket, and TLS on a TCP port.

use std::{
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::{TcpListener, UnixListener};

use crate::regular;

/// File in the runtime folder that tells the port that was taken.
pub const ADDRESS_FILE: &str = "control.addr";

/// Largest file with certificates or a key, bytes.
const PEM_MAX: u64 = 1 << 20;

/// Why operators cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; {} or set control.listen to another address", mend(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Another agent answers on the socket.
    #[error("another program already serves {0}; end it first")]
    Served(PathBuf),
    /// Something else is where the socket should be.
    #[error("{0} exists and is not a socket; move it away or set control.socket to another path")]
    NotASocket(PathBuf),
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host's certificate cannot be used.
    #[error(
        "control.listen needs the host's certificate: {path}: {message}; enrol the host (breakglass-collector enroll host)"
    )]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// What makes an address free that cannot be listened on.
fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "end the program that does (ss -ltnp names it),",
        ErrorKind::AddrNotAvailable => "set up the network interface that has it,",
        _ => "remove what the kernel says,",
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ControlError {
    move |source| ControlError::Io { what, path: path.to_owned(), source }
}

/// Makes a folder that everybody may look into, whatever the umask is. An existing one is left as it is.
pub fn public_folder(path: &Path) -> Result<(), ControlError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("make", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed("open to all", path))
}

/// Listens on a socket that everybody may connect to; what they may do is decided by who they are. A socket that nobody
/// serves any more is replaced.
pub fn unix(path: &Path) -> Result<UnixListener, ControlError> {
    if let Some(folder) = path.parent() {
        public_folder(folder)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed("open to all", path))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(ControlError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ControlError::Served(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale", path))
        }
        Err(error) => Err(failed("connect to", path)(error)),
    }
}

/// Listens on a TCP address; gives the real one, too.
pub async fn tcp(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ControlError> {
    let bind = |source| ControlError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let real = listener.local_addr().map_err(bind)?;
    Ok((listener, real))
}

/// Writes where TLS is served into the runtime folder.
pub fn write_address(runtime: &Path, real: SocketAddr) -> Result<(), ControlError> {
    let file = runtime.join(ADDRESS_FILE);
    let beside = runtime.join(format!(".{ADDRESS_FILE}.new"));
    fs::write(&beside, format!("{real}\n"))
        .and_then(|()| fs::set_permissions(&beside, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&beside, &file))
        .map_err(failed("write", &file))
}

/// Takes away what an agent that ended without warning left there: nobody serves at that address until this one does.
pub fn forget_address(runtime: &Path) {
    let file = runtime.join(ADDRESS_FILE);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(%error, "{} is stale and cannot be removed", file.display());
        }
        _ => {}
    }
}

/// TLS 1.3 with the host's certificate. Operators show none: what they prove, they prove by their signature.
pub fn tls(enrolment: &Path) -> Result<Arc<ServerConfig>, ControlError> {
    let certificate = Certificate::new(enrolment)?;
    let wrong = |message: String| ControlError::Certificate { path: enrolment.join("host.crt"), message };
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(e.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    Ok(Arc::new(config))
}

/// The host's certificate, read again when it was renewed: an agent runs for longer than one is good.
#[derive(Debug)]
struct Certificate {
    enrolment: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    changed: Option<SystemTime>,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    fn new(enrolment: &Path) -> Result<Self, ControlError> {
        let known = Known { changed: changed(enrolment), key: Arc::new(certified(enrolment)?) };
        Ok(Self { enrolment: enrolment.to_owned(), known: Mutex::new(known) })
    }

    /// The certificate as it is now; the one before where it cannot be read.
    fn current(&self) -> Arc<CertifiedKey> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.enrolment);
        if now != known.changed {
            // Tried once for each change.
            known.changed = now;
            match certified(&self.enrolment) {
                Ok(key) => known.key = Arc::new(key),
                Err(error) => tracing::warn!("the host's new certificate cannot be used, the old one goes on: {error}"),
            }
        }
        Arc::clone(&known.key)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn changed(enrolment: &Path) -> Option<SystemTime> {
    fs::metadata(enrolment.join("host.crt")).and_then(|meta| meta.modified()).ok()
}

/// Certificate and key of an enrolment folder, which must belong together.
fn certified(enrolment: &Path) -> Result<CertifiedKey, ControlError> {
    let certificate = enrolment.join("host.crt");
    let key = enrolment.join("host.key");
    let wrong = |path: &Path, message: String| ControlError::Certificate { path: path.to_owned(), message };
    let read = |path: &Path| regular::read(path, PEM_MAX).map_err(|e| wrong(path, e.to_string()));
    let chain = CertificateDer::pem_slice_iter(&read(&certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| wrong(&certificate, e.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(&certificate, "it holds no certificate".into()));
    }
    let pem = zeroize::Zeroizing::new(read(&key)?);
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| wrong(&key, e.to_string()))?;
    CertifiedKey::from_der(chain, secret, &rustls::crypto::ring::default_provider())
        .map_err(|e| wrong(&certificate, e.to_string()))
}
