//! Talks to an agent: docs/PROTOCOL.md.

use std::{path::Path, sync::Arc, time::Duration};

use breakglass_api::{
    CONTROL_MESSAGE_MAX,
    v1::{ControlRequest, ControlResponse, control_request::Body as Request, control_response::Body as Answer},
};
use prost::Message;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    failure::Failure,
    target::{Door, Target},
};

/// For a connection and for a handshake, each.
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer. Closing takes the host up to a second, its account files may be held for fifteen.
const ANSWER: Duration = Duration::from_secs(30);
/// How long, and with which pause, a host is tried that takes a connection and ends it before the answer, as one does that is flooded from here.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// A byte stream to an agent.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection to an agent, made anew where it breaks.
pub struct Client<'a> {
    target: &'a Target,
    stream: Option<Box<dyn Stream>>,
}

impl<'a> Client<'a> {
    /// Connects.
    pub async fn connect(target: &'a Target) -> Result<Self, Failure> {
        Ok(Self { target, stream: Some(connect(target).await?) })
    }

    /// Sends one request and waits for its answer; a refusal is an error.
    ///
    /// A connection that ends before the answer is made anew and the request sent again. That is safe: a request that was
    /// worked off is then refused as used before, and never worked off twice.
    pub async fn ask(&mut self, request: Request) -> Result<Answer, Failure> {
        let message = framed(&ControlRequest { body: Some(request) });
        let began = Instant::now();
        let mut attempt = 0;
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => connect(self.target).await?,
            };
            match timeout(ANSWER, exchange(&mut stream, &message)).await {
                Ok(Ok(Answer::Refused(refused))) if attempt > 0 && is_second_time(&refused.code) => {
                    return Err(Failure::Other(format!(
                        "{} took the request but its answer was lost; see: breakglass status {}",
                        self.target.name, self.target.name
                    )));
                }
                Ok(Ok(Answer::Refused(refused))) => return Err(Failure::refused(&self.target.name, refused)),
                Ok(Ok(answer)) => {
                    self.stream = Some(stream);
                    return Ok(answer);
                }
                Ok(Err(_)) if began.elapsed() < PATIENCE => sleep(PAUSE).await,
                Ok(Err(error)) => {
                    return Err(self.failed(format!("the connection ended before the answer ({error}); try again")));
                }
                Err(_) => return Err(self.failed(format!("no answer within {} s", ANSWER.as_secs()))),
            }
            attempt += 1;
        }
    }

    /// The answer was not of the kind that belongs to the request.
    pub fn unexpected(&self) -> Failure {
        Failure::Other(format!("{} answered something else than asked; is it of this version?", self.target.name))
    }

    fn failed(&self, message: String) -> Failure {
        Failure::Connect { host: self.target.name.clone(), message }
    }
}

/// Whether a refusal says that the request was worked off before.
fn is_second_time(code: &str) -> bool {
    matches!(code, "replayed-nonce" | "used-code" | "used-grant")
}

fn framed(request: &ControlRequest) -> Vec<u8> {
    let body = request.encode_to_vec();
    // Requests are a few KiB; the length cannot overflow.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &body].concat()
}

async fn exchange(stream: &mut Box<dyn Stream>, message: &[u8]) -> Result<Answer, String> {
    let said = |e: std::io::Error| e.to_string();
    stream.write_all(message).await.map_err(said)?;
    stream.flush().await.map_err(said)?;
    let length = stream.read_u32().await.map_err(said)? as usize;
    if length > CONTROL_MESSAGE_MAX {
        return Err(format!("the answer has {length} bytes"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(said)?;
    let answer = ControlResponse::decode(bytes.as_slice()).map_err(|e| format!("the answer is not understood: {e}"))?;
    answer.body.ok_or_else(|| "the answer is empty".to_owned())
}

/// Why there is no connection.
enum NotConnected {
    /// The host ended it before it could be used; it may take the next one.
    CutOff(Failure),
    /// Another attempt would end like this one.
    Failed(Failure),
}

impl From<Failure> for NotConnected {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn connect(target: &Target) -> Result<Box<dyn Stream>, Failure> {
    let began = Instant::now();
    loop {
        match connect_once(target).await {
            Ok(stream) => return Ok(stream),
            Err(NotConnected::CutOff(_)) if began.elapsed() < PATIENCE => sleep(PAUSE).await,
            Err(NotConnected::CutOff(failure) | NotConnected::Failed(failure)) => return Err(failure),
        }
    }
}

fn is_cut_off(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

async fn connect_once(target: &Target) -> Result<Box<dyn Stream>, NotConnected> {
    let failed = |message: String| Failure::Connect { host: target.name.clone(), message };
    match &target.door {
        Door::Socket(path) => match timeout(CONNECT, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(failed(format!("{}: {error}; is breakglass-agent running?", path.display())).into()),
            Err(_) => Err(failed(format!("{}: no answer", path.display())).into()),
        },
        Door::Tls { address, ca } => {
            let config = tls(ca)?;
            let name = ServerName::try_from(target.name.clone())
                .map_err(|_| Failure::Usage(format!("{:?} cannot be the name in a certificate", target.name)))?;
            let stream = match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) if is_cut_off(&error) => {
                    return Err(NotConnected::CutOff(failed(format!("{address}: {error}"))));
                }
                Ok(Err(error)) => return Err(failed(format!("{address}: {error}")).into()),
                Err(_) => return Err(failed(format!("{address}: no answer within {} s", CONNECT.as_secs())).into()),
            };
            // Single small packets both ways; waiting to fill them costs 40 ms. Without it all still works.
            let _ = stream.set_nodelay(true);
            match timeout(CONNECT, TlsConnector::from(config).connect(name, stream)).await {
                Ok(Ok(stream)) => Ok(Box::new(stream)),
                Ok(Err(error)) if is_cut_off(&error) => Err(NotConnected::CutOff(failed(format!(
                    "{address}: it ends every connection at once ({error}); it may be flooded: try again, from elsewhere if that is possible"
                )))),
                Ok(Err(error)) => Err(failed(format!(
                    "{address}: {error}; its certificate must carry the name {:?} and be signed by {}",
                    target.name,
                    ca.display()
                ))
                .into()),
                Err(_) => Err(failed(format!("{address}: no TLS within {} s", CONNECT.as_secs())).into()),
            }
        }
    }
}

fn tls(ca: &Path) -> Result<Arc<ClientConfig>, Failure> {
    let unusable = |e: String| Failure::Other(format!("cannot use the CA certificate {}: {e}", ca.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| unusable(e.to_string()))? {
        let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
        roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it holds no certificate".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
