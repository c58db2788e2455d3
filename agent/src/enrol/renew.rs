//! Renewing the host's certificate, long before it ends.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use breakglass_api::v1::{Joined, RenewRequest, enrol_client::EnrolClient};
use tokio::sync::watch;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use x509_parser::pem::parse_x509_pem;

use super::{CA, CERT, EnrolError, FILE_MAX, KEY, failed, replace, request_for};
use crate::{blocking, regular};

/// How often is looked whether it is time, and how soon after a failure.
const LOOK: Duration = Duration::from_secs(10 * 60);
const RETRY: Duration = Duration::from_secs(60);
/// How long asking may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Keeps the certificate of an enrolment folder fresh.
pub struct Renewal {
    /// Collectors, tried in turn: `https://name:port`.
    pub urls: Vec<String>,
    /// Name that their certificates must carry.
    pub server_name: String,
    /// The enrolment folder.
    pub enrolment: PathBuf,
}

/// When a certificate is good, seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    from: i64,
    until: i64,
}

/// Whether a certificate should be renewed: once a third of its time is over, so that a collector may be away for the rest.
pub fn is_due(from: i64, until: i64, now: i64) -> bool {
    let third = until.saturating_sub(from) / 3;
    now >= from.saturating_add(third)
}

impl Renewal {
    /// Looks again and again until told to stop.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut said = String::new();
        loop {
            let pause = match self.renew_if_due().await {
                Ok(renewed) => {
                    if renewed {
                        tracing::info!("the host's certificate was renewed");
                    }
                    said.clear();
                    LOOK
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        tracing::warn!("the host's certificate is due and could not be renewed: {text}");
                        said = text;
                    }
                    RETRY
                }
            };
            if let Ok(stopped) = tokio::time::timeout(pause, stopping.wait_for(|stop| *stop)).await {
                // An error says that nobody can tell us any more.
                let _ = stopped;
                return;
            }
        }
    }

    /// Whether it was time, and is done.
    async fn renew_if_due(&self) -> Result<bool, EnrolError> {
        let path = self.enrolment.join(CERT);
        let old = read(&path).await?;
        let now = crate::session::clock::wall_s();
        let Validity { from, until } =
            validity(&old).map_err(|message| EnrolError::Unusable { path: path.clone(), message })?;
        if !is_due(from, until, now) {
            return Ok(false);
        }
        let joined = self.ask(&old).await?;
        let new = validity(&joined.certificate).map_err(EnrolError::Refused)?;
        if new.until <= until {
            return Err(EnrolError::Refused("the certificate that it gave ends no later than the old one".into()));
        }
        replace(&path, joined.certificate.as_bytes(), 0o644)?;
        Ok(true)
    }

    async fn ask(&self, cert: &str) -> Result<Joined, EnrolError> {
        let (ca, key) = (read(&self.enrolment.join(CA)).await?, read(&self.enrolment.join(KEY)).await?);
        let path = self.enrolment.join(KEY);
        let pair = rcgen::KeyPair::from_pem(&key);
        let pair = pair.map_err(|error| EnrolError::Unusable { path: path.clone(), message: error.to_string() })?;
        let request = RenewRequest { request: request_for(&pair, &path)? };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(cert, key))
            .domain_name(&self.server_name);
        let mut last = EnrolError::Refused("no collector is configured".into());
        for url in &self.urls {
            match ask_one(url, tls.clone(), request.clone()).await {
                Ok(joined) => return Ok(joined),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn read(path: &Path) -> Result<String, EnrolError> {
    let file = path.to_owned();
    blocking::run(move || regular::read_to_string(&file, FILE_MAX)).await.map_err(failed("read", path))
}

async fn ask_one(url: &str, tls: ClientTlsConfig, request: RenewRequest) -> Result<Joined, EnrolError> {
    let connect =
        |error: tonic::transport::Error| EnrolError::Connect { url: url.to_owned(), reason: error.to_string() };
    let endpoint =
        Endpoint::from_shared(url.to_owned()).and_then(|endpoint| endpoint.tls_config(tls)).map_err(connect)?;
    let channel = endpoint.connect_timeout(LIMIT).timeout(LIMIT).connect().await.map_err(connect)?;
    let renewed = EnrolClient::new(channel).renew(request).await;
    Ok(renewed.map_err(|status| EnrolError::Refused(status.message().to_owned()))?.into_inner())
}

fn validity(pem: &str) -> Result<Validity, String> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| format!("it is not PEM: {error}"))?;
    let certificate = pem.parse_x509().map_err(|error| format!("it is not a certificate: {error}"))?;
    let validity = certificate.validity();
    Ok(Validity { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_is_a_trap_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        regular::tests::trap(&dir.path().join(CERT));
        let renewal = Renewal { urls: vec![], server_name: String::new(), enrolment: dir.path().to_owned() };
        let looked = tokio::spawn(async move { renewal.renew_if_due().await });
        let looked = tokio::time::timeout(Duration::from_secs(20), looked).await.expect("it waits for a FIFO");
        assert!(matches!(looked.unwrap(), Err(EnrolError::File { .. })));
    }

    #[test]
    fn due_after_a_third() {
        assert!(!is_due(0, 30, 9));
        assert!(is_due(0, 30, 10) && is_due(0, 30, 31), "and when it is too late as well");
        assert!(is_due(i64::MIN, i64::MAX, i64::MAX), "nothing overflows");
    }
}
