//! The log's side of the witness protocol, C2SP tlog-witness: asking one witness to cosign a checkpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use signed_note::{Signature, Verifier};

use super::log::{Log, LogError};
use super::note::{SignedCheckpoint, VerifierKey};
use super::request::{AddCheckpoint, SIZE_TYPE, parse_size};

/// How long a witness may take, all its answers to one checkpoint together. Above a slow link's round trips and a disk's
/// sync; a witness that takes longer is asked again later.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests for one checkpoint: one with the size that is known, one with the size that the witness names, and one more
/// in case that somebody else fed it in between.
const ATTEMPTS: usize = 3;
/// Largest answer that is read, bytes: a few lines of signatures, post-quantum ones included.
const ANSWER_MAX: usize = 32 * 1024;
/// Characters of a witness's own words that are passed on.
const WORDS_MAX: usize = 200;
/// How long an idle connection to a witness is kept.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// HTTP and HTTPS to witnesses.
pub type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Why there is no cosignature.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// No answer.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Took longer than [`WITNESS_TIMEOUT`].
    #[error("did not answer within {} s", WITNESS_TIMEOUT.as_secs())]
    Slow,
    /// 404.
    #[error("does not know this log: give its operator the log's key (breakglass-collector log status)")]
    UnknownLog,
    /// 403.
    #[error("does not accept the log's signature: does it have the right key of this log? It said: {0}")]
    Key(String),
    /// 422, or a conflict about the size that was sent: it has seen another history.
    #[error("saw another history of this log and refuses the checkpoint; it said: {0}")]
    Inconsistent(String),
    /// It cosigned more than there is.
    #[error(
        "has cosigned {witness} leaves of this log, which has {log}: the log was rolled back, or its key is used elsewhere"
    )]
    Ahead {
        /// Its size.
        witness: u64,
        /// Ours.
        log: u64,
    },
    /// It knows less than it has cosigned.
    #[error(
        "has forgotten that it cosigned {known} leaves and names {named}: it was rolled back and proves nothing any more"
    )]
    RolledBack {
        /// What it cosigned.
        known: u64,
        /// What it says now.
        named: u64,
    },
    /// Any other answer.
    #[error("answered {0}: {1}")]
    Status(StatusCode, String),
    /// 200 without a good cosignature.
    #[error("answered without a valid cosignature of its own")]
    NoCosignature,
    /// It names another size each time.
    #[error("named a new size {ATTEMPTS} times")]
    Unsteady,
    /// The log cannot make the proof.
    #[error("no proof for it: {0}")]
    Proof(#[from] LogError),
}

/// The connections that all witnesses share. Public witnesses are verified by the system's certificates.
pub fn http() -> Result<Http, rustls::Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, errors = ?found.errors, "certificates for https to witnesses");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(WITNESS_TIMEOUT));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE_MAX).pool_timer(TokioTimer::new()).pool_max_idle_per_host(1);
    Ok(builder.build(connector))
}

/// One witness.
pub struct Witness {
    key: VerifierKey,
    url: Uri,
    /// Largest size that it is known to have cosigned.
    known: u64,
}

impl Witness {
    /// A witness whose cosignatures verify with `key`, at `url`.
    pub fn new(key: VerifierKey, url: Uri) -> Self {
        Self { key, url, known: 0 }
    }

    /// Its key.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// Where it is.
    pub fn url(&self) -> &Uri {
        &self.url
    }

    /// Largest size that it is known to have cosigned.
    pub fn known(&self) -> u64 {
        self.known
    }

    /// Notes that it has cosigned a tree of this size.
    pub fn has_cosigned(&mut self, size: u64) {
        self.known = self.known.max(size);
    }

    /// Asks for a cosignature of a checkpoint that the log has signed.
    pub async fn cosign(
        &mut self,
        http: &Http,
        log: &Arc<Log>,
        checkpoint: &SignedCheckpoint,
    ) -> Result<Signature, WitnessError> {
        match tokio::time::timeout(WITNESS_TIMEOUT, self.ask(http, log, checkpoint)).await {
            Ok(answer) => answer,
            Err(_) => Err(WitnessError::Slow),
        }
    }

    async fn ask(
        &mut self,
        http: &Http,
        log: &Arc<Log>,
        checkpoint: &SignedCheckpoint,
    ) -> Result<Signature, WitnessError> {
        let size = checkpoint.size();
        let note = checkpoint.to_bytes();
        let mut old = self.known.min(size);
        for _ in 0..ATTEMPTS {
            let proof = log.consistency_proof(old, size).await?;
            let (status, sizes, body) = self.send(http, AddCheckpoint { old, proof, note: &note }.to_bytes()).await?;
            let words = || quote(&body);
            match status {
                StatusCode::OK => {
                    let signature =
                        find_cosignature(&self.key, checkpoint, &body).ok_or(WitnessError::NoCosignature)?;
                    self.has_cosigned(size);
                    return Ok(signature);
                }
                StatusCode::CONFLICT if sizes => {
                    let named = named_size(&body).ok_or_else(|| WitnessError::Status(status, words()))?;
                    old = self.take_size(old, named, size)?;
                }
                StatusCode::NOT_FOUND => return Err(WitnessError::UnknownLog),
                StatusCode::FORBIDDEN => return Err(WitnessError::Key(words())),
                StatusCode::UNPROCESSABLE_ENTITY => return Err(WitnessError::Inconsistent(words())),
                other => return Err(WitnessError::Status(other, words())),
            }
        }
        Err(WitnessError::Unsteady)
    }

    /// What to make of a conflict: the size to prove from, unless it shows that something is wrong.
    fn take_size(&self, sent: u64, named: u64, size: u64) -> Result<u64, WitnessError> {
        if named < self.known {
            return Err(WitnessError::RolledBack { known: self.known, named });
        }
        if named > size {
            return Err(WitnessError::Ahead { witness: named, log: size });
        }
        if named == sent {
            // How earlier versions of the protocol answer an equal size with another root.
            return Err(WitnessError::Inconsistent(format!("conflict at size {named}")));
        }
        Ok(named)
    }

    async fn send(&self, http: &Http, body: Vec<u8>) -> Result<(StatusCode, bool, Bytes), WitnessError> {
        let unreachable = |error: &dyn std::error::Error| WitnessError::Unreachable(causes(error));
        let url = format!("{}/add-checkpoint", self.url.to_string().trim_end_matches('/'));
        let request = Request::builder().method(Method::POST).uri(url).body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| unreachable(&error))?;
        let response = http.request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let sizes = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == SIZE_TYPE);
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| WitnessError::Unreachable(error.to_string()))?;
        Ok((status, sizes, body.to_bytes()))
    }
}

/// The line of a witness's answer that is a good cosignature of the checkpoint by `key`. Lines of other keys are ignored.
pub fn find_cosignature(key: &VerifierKey, checkpoint: &SignedCheckpoint, answer: &[u8]) -> Option<Signature> {
    let lines = answer.strip_suffix(b"\n")?.split(|byte| *byte == b'\n');
    let signatures = lines.filter_map(|line| Signature::from_bytes(line).ok());
    let mut own = signatures.filter(|signature| signature.name() == key.name() && signature.id() == key.key_id());
    own.find(|signature| key.cosigned_at(checkpoint.text(), signature.signature()).is_some())
}

fn named_size(body: &[u8]) -> Option<u64> {
    parse_size(std::str::from_utf8(body).ok()?.strip_suffix('\n')?)
}

/// A stranger's words, fit for a log line.
fn quote(body: &[u8]) -> String {
    let words = String::from_utf8_lossy(body);
    words.trim().chars().take(WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error with what caused it; the HTTP client says nothing but "client error" itself.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tlog::note::{KeyType, NoteKey};

    fn witness(known: u64) -> Witness {
        let key = NoteKey::generate("w.example/1", KeyType::Cosignature).unwrap();
        Witness { known, ..Witness::new(key.public().clone(), Uri::from_static("http://w.example/")) }
    }

    #[test]
    fn a_conflict_names_the_size_or_what_is_wrong() {
        let conflict = |known, sent, named, size| witness(known).take_size(sent, named, size);
        assert_eq!(conflict(0, 0, 7, 9).unwrap(), 7);
        assert_eq!(conflict(3, 3, 9, 9).unwrap(), 9);
        assert!(matches!(conflict(0, 0, 10, 9), Err(WitnessError::Ahead { witness: 10, log: 9 })));
        assert!(matches!(conflict(5, 5, 4, 9), Err(WitnessError::RolledBack { known: 5, named: 4 })));
        assert!(matches!(conflict(9, 9, 9, 9), Err(WitnessError::Inconsistent(_))));
    }

    #[test]
    fn sizes_have_one_spelling() {
        assert_eq!(named_size(b"12\n"), Some(12));
        for body in [&b"12"[..], b"012\n", b"+12\n", b" 12\n", b"12\n\n", b"\n", b"", b"\xff\n"] {
            assert_eq!(named_size(body), None, "{body:?}");
        }
    }

    #[test]
    fn only_the_cosignature_that_was_asked_for_counts() {
        let log = NoteKey::generate("log.example", KeyType::Note).unwrap();
        let key = NoteKey::generate("w.example/1", KeyType::Cosignature).unwrap();
        let other = NoteKey::generate("w.example/1", KeyType::Cosignature).unwrap();
        let checkpoint = SignedCheckpoint::sign(&log, 3, tlog_tiles::Hash([1; 32])).unwrap();
        let line = |key: &NoteKey, text: &[u8], time| key.sign(text, time).unwrap().to_bytes();
        let good = line(&key, checkpoint.text(), 5);
        let find = |answer: &[u8]| find_cosignature(key.public(), &checkpoint, answer).is_some();
        assert!(find(&good));
        assert!(find(&[b"nonsense\n", good.as_slice()].concat()));
        assert!(find(&[line(&other, checkpoint.text(), 5), good.clone()].concat()));
        assert!(!find(&line(&other, checkpoint.text(), 5)));
        assert!(!find(&line(&key, b"log.example\n3\nsomething else\n", 5)));
        assert!(!find(&line(&key, checkpoint.text(), 0)));
        assert!(!find(good.strip_suffix(b"\n").unwrap()));
    }

    proptest! {
        #[test]
        fn answers_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300), line in "— [a-z.]{1,5} [A-Za-z0-9+/]{0,90}=*\n") {
            let log = NoteKey::generate("log.example", KeyType::Note).unwrap();
            let checkpoint = SignedCheckpoint::sign(&log, 3, tlog_tiles::Hash([1; 32])).unwrap();
            let key = witness(0).key;
            prop_assert!(find_cosignature(&key, &checkpoint, &noise).is_none());
            prop_assert!(find_cosignature(&key, &checkpoint, line.as_bytes()).is_none());
            let _ = named_size(&noise);
            prop_assert!(quote(&noise).chars().count() <= WORDS_MAX);
        }
    }
}
