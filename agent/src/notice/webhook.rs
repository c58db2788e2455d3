//! Notices as POST requests over HTTPS.
//!
//! The body is one JSON object ([`super::message::Notice::json`]). `Breakglass-Signature: t=SECONDS,v1=HEX` carries the Unix time of the
//! attempt and HMAC-SHA256, under the shared secret, of `SECONDS.` and the body: whoever receives it recomputes that, compares in
//! constant time, and refuses old times. `Breakglass-Id` is the same for every attempt at one notice. An answer of 2xx is the end of it;
//! otherwise it is tried again after [`PAUSES`], and given up on after the last.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hmac::{Hmac, Mac};
use http_body_util::Full;
use hyper::{Method, Request, Uri, header::CONTENT_TYPE};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use sha2::Sha256;
use tokio::{sync::mpsc, time::timeout};

use super::{Origin, message::Notice, settings::Hook};
use crate::{blocking, regular, session::clock};

/// Between the attempts at one notice.
#[cfg(not(test))]
pub const PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(120),
];
/// Between the attempts at one notice.
#[cfg(test)]
pub const PAUSES: [Duration; 5] = [Duration::from_millis(10); 5];

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Bounds of the secret, bytes.
const SECRET: std::ops::RangeInclusive<usize> = 16..=1024;
/// Largest file of CA certificates, bytes.
const CA_MAX: u64 = 4 << 20;
/// How long reading the system's CA certificates may take: a few hundred small files.
const CA_LIMIT: Duration = Duration::from_secs(10);

/// Where notices are posted.
pub struct Webhook {
    url: Uri,
    secret: Vec<u8>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    origin: Origin,
}

impl Webhook {
    /// Reads secret and certificates; an error says what to do.
    pub fn new(hook: &Hook, origin: Origin) -> Result<Self, String> {
        let url: Uri = hook.url.parse().map_err(|e| format!("notice.webhook.url: {:?}: {e}", hook.url))?;
        if url.scheme_str() != Some("https") || url.host().is_none() {
            return Err(format!("notice.webhook.url: {:?} is not of the form https://HOST/PATH", hook.url));
        }
        let secret =
            secret(&hook.secret).map_err(|e| format!("notice.webhook.secret: {}: {e}", hook.secret.display()))?;
        let roots = roots(hook.ca.as_deref())?;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| format!("no TLS for the webhook: {e}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(ATTEMPT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(connector);
        // One connection a notice: they are rare.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { url, secret, client, origin })
    }

    async fn post(&self, notice: &Notice) -> Result<(), String> {
        let body = serde_json::to_vec(&notice.json(&self.origin)).map_err(|e| e.to_string())?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("Breakglass-Id", notice.id.to_string())
            .header("Breakglass-Signature", signature(&self.secret, clock::wall_s(), &body))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        match timeout(ATTEMPT, self.client.request(request)).await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
            Ok(Ok(answer)) => Err(format!("it answered {}", answer.status())),
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => Err(format!("no answer within {} s", ATTEMPT.as_secs())),
        }
    }
}

/// Posts what comes, one after the other. Without a webhook it only takes it.
pub(super) async fn post_all(webhook: Option<Webhook>, mut waiting: mpsc::Receiver<Notice>, pending: &AtomicUsize) {
    while let Some(notice) = waiting.recv().await {
        if let Some(webhook) = &webhook {
            deliver(webhook, &notice).await;
        }
        pending.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn deliver(webhook: &Webhook, notice: &Notice) {
    let mut pauses = PAUSES.iter();
    while let Err(error) = webhook.post(notice).await {
        let Some(pause) = pauses.next() else {
            tracing::error!(url = %webhook.url, kind = notice.kind.word(), error, "a notice was not delivered, and is given up on");
            return;
        };
        tracing::warn!(url = %webhook.url, kind = notice.kind.word(), error, "a notice is not delivered yet");
        tokio::time::sleep(*pause).await;
    }
}

/// `t=SECONDS,v1=HEX`.
pub fn signature(secret: &[u8], wall_s: i64, body: &[u8]) -> String {
    // HMAC hashes keys that are longer than a block and pads those that are shorter, so that every length is one.
    let mut block = [0; 64];
    let key: Vec<u8> = match secret.len() {
        0..=64 => secret.to_vec(),
        _ => <Sha256 as sha2::Digest>::digest(secret).to_vec(),
    };
    block.iter_mut().zip(&key).for_each(|(to, from)| *to = *from);
    let mac = Hmac::<Sha256>::new(&block.into()).chain_update(format!("{wall_s}.")).chain_update(body);
    format!("t={wall_s},v1={}", hex::encode(mac.finalize().into_bytes()))
}

/// The secret: a file that nobody but its owner can read.
fn secret(path: &Path) -> io::Result<Vec<u8>> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = regular::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        return Err(wrong("others can read it; chmod 600".into()));
    }
    let secret = regular::content(&file, *SECRET.end() as u64 + 16)?.trim_ascii().to_vec();
    match SECRET.contains(&secret.len()) {
        true => Ok(secret),
        false => Err(wrong(format!("{} bytes; wanted are {} to {}", secret.len(), SECRET.start(), SECRET.end()))),
    }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        // Those that cannot be read are left out, as every other program leaves them out.
        let found = blocking::within(CA_LIMIT, rustls_native_certs::load_native_certs)
            .ok_or("notice.webhook: reading this system's CA certificates does not end; set notice.webhook.ca")?;
        roots.add_parsable_certificates(found.certs);
        return match roots.is_empty() {
            true => Err("notice.webhook: this system has no CA certificates; set notice.webhook.ca".into()),
            false => Ok(roots),
        };
    };
    let unusable = |e: String| format!("notice.webhook.ca: {}: {e}", path.display());
    let text = regular::read(path, CA_MAX).map_err(|e| unusable(e.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
        roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(unusable("it holds no certificate".into())),
        false => Ok(roots),
    }
}
