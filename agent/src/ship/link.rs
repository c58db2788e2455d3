//! The transport: mutual TLS, HTTP/2, the two halves of the stream.

use std::{path::Path, pin::Pin};

use breakglass_api::{
    GRPC_MESSAGE_MAX,
    v1::{AgentMessage, CollectorMessage, ingest_client::IngestClient},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{Options, ShipError};
use crate::{blocking, enrol::FILE_MAX, regular};

/// Messages handed to the transport and not taken yet. Few, since each may be a whole frame.
const OUTBOX: usize = 4;
/// Largest message of the collector's, bytes: an acknowledgement or a sentence.
const INBOUND_MAX: usize = 64 * 1024;

/// An open stream.
pub struct Link {
    pub outbox: mpsc::Sender<AgentMessage>,
    pub inbox: Inbox,
}

/// What a collector says.
pub type Inbox = Pin<Box<dyn Stream<Item = Result<CollectorMessage, Status>> + Send>>;

/// A connection being made.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Link, ShipError>> + Send + 'a>>;

/// How connections are made: the seam under shipping, so that tests can cut, lose, delay and repeat.
pub trait Dial: Send + Sync {
    /// Connects to `url` and sends `hello`.
    fn dial<'a>(&'a self, url: &'a str, options: &'a Options, hello: AgentMessage) -> Dialling<'a>;
}

/// The real one.
pub struct Network;

impl Dial for Network {
    fn dial<'a>(&'a self, url: &'a str, options: &'a Options, hello: AgentMessage) -> Dialling<'a> {
        Box::pin(connect(url, options, hello))
    }
}

/// Connects and sends `hello`.
async fn connect(url: &str, options: &Options, hello: AgentMessage) -> Result<Link, ShipError> {
    let refused = |reason: String| ShipError::Connect { url: url.to_owned(), reason };
    let endpoint = endpoint(url, options).await?;
    let channel = timeout(options.pace.connect, endpoint.connect())
        .await
        .map_err(|_| refused("no answer in time".into()))?
        .map_err(|e| refused(chain(&e)))?;
    open(channel, options, hello, refused).await
}

async fn open(
    channel: Channel,
    options: &Options,
    hello: AgentMessage,
    refused: impl Fn(String) -> ShipError,
) -> Result<Link, ShipError> {
    let mut client =
        IngestClient::new(channel).max_encoding_message_size(GRPC_MESSAGE_MAX).max_decoding_message_size(INBOUND_MAX);
    let (outbox, receiver) = mpsc::channel(OUTBOX);
    // Before the stream is opened, so that a collector which waits for it before it answers gets it.
    outbox.send(hello).await.map_err(|_| refused("the stream is closed".into()))?;
    let response = timeout(options.pace.connect, client.stream(ReceiverStream::new(receiver)))
        .await
        .map_err(|_| refused("no answer in time".into()))?
        .map_err(|status| refused(sentence(&status)))?;
    Ok(Link { outbox, inbox: Box::pin(response.into_inner()) })
}

async fn endpoint(url: &str, options: &Options) -> Result<Endpoint, ShipError> {
    let [ca, cert, key] = ["ca.crt", "host.crt", "host.key"].map(|name| options.enrolment.join(name));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&ca).await?))
        .identity(Identity::from_pem(read(&cert).await?, read(&key).await?))
        .domain_name(options.server_name.clone());
    let refused = |e: tonic::transport::Error| ShipError::Connect { url: url.to_owned(), reason: chain(&e) };
    Ok(Endpoint::from_shared(url.to_owned())
        .map_err(refused)?
        .tls_config(tls)
        .map_err(refused)?
        .connect_timeout(options.pace.connect)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.pace.keepalive)
        .keep_alive_timeout(options.pace.keepalive_timeout)
        .keep_alive_while_idle(true))
}

/// The session's root could have left a FIFO there, and with it a thread that waits for every attempt.
async fn read(path: &Path) -> Result<Vec<u8>, ShipError> {
    let file = path.to_owned();
    let read = blocking::run(move || regular::read(&file, FILE_MAX)).await;
    read.map_err(|source| ShipError::Enrolment { file: path.to_owned(), source })
}

/// What a gRPC status means, for people.
pub fn sentence(status: &Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{:?}: {message}", status.code()),
    }
}

/// An error with its causes: the transport's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    /// Deeper than any library nests.
    const DEPTH_MAX: usize = 8;
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source.filter(|_| texts.len() < DEPTH_MAX) {
        let text = cause.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        source = cause.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_enrolment_that_is_a_trap_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(read(&path).await.unwrap(), b"x");
        regular::tests::trap(&path);
        let read = timeout(Duration::from_secs(20), read(&path)).await.expect("it waits for a FIFO");
        assert!(matches!(read, Err(ShipError::Enrolment { .. })));
    }
}
