//! The connection to the collector, and what its errors mean to a person.

use std::{error::Error as StdError, io, path::Path, time::Duration};

use breakglass_api::{
    GRPC_MESSAGE_MAX,
    v1::{manage_client::ManageClient, query_client::QueryClient},
};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    config::{Collector, Config},
    print::safe,
};

/// How long to wait for the collector to take a connection. It is one round trip and a TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to ask whether the other end of a quiet connection is still there, so that following a session notices a cut.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How deep to look into the causes of an error; they are three or four deep.
const CAUSES_MAX: usize = 16;

const CERTIFICATE_REFUSED: &str = "The collector refuses your certificate: check collector.cert and collector.key, or have \
                                   yourself enrolled again with `breakglass-collector enroll person`.";
const CONNECTION_BROKE: &str = "If this happens every time, the collector refuses your certificate: check collector.cert and \
                                collector.key, or have yourself enrolled again with `breakglass-collector enroll \
                                person`. Otherwise look at the collector's log and try again.";

/// The client of the collector's query service.
pub type Query = QueryClient<Channel>;

/// Why the collector could not be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no `[collector]` section.
    #[error(
        "no collector is configured: put a [collector] section into ~/.config/breakglass/config.toml, or name the \
         config.toml of your enrolment folder with --config or BREAKGLASS_CONFIG"
    )]
    NotConfigured,
    /// A file of the enrolment cannot be read.
    #[error("cannot read {path}: {source} (set as collector.{key} in the configuration)")]
    Unreadable {
        /// Key in the configuration.
        key: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Configured values that cannot be used.
    #[error("cannot use the [collector] configuration: {0}")]
    Unusable(String),
    /// No connection.
    #[error("cannot connect to the collector at {url}: {reason}\n{hint}")]
    CannotConnect {
        /// Where to.
        url: String,
        /// What happened.
        reason: String,
        /// What to look at.
        hint: String,
    },
    /// The collector does not let this certificate's holder do this.
    #[error("refused by the collector: {0}")]
    Refused(String),
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Usage(String),
    /// The request makes no sense to the collector.
    #[error("the collector cannot do that: {0}")]
    BadRequest(String),
    /// Anything else that went wrong there.
    #[error("the collector failed: {message} ({code:?})")]
    Failed {
        /// Its code.
        code: Code,
        /// Its message.
        message: String,
    },
}

impl Error {
    /// The exit code that says so.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotConfigured | Self::Unreadable { .. } | Self::Unusable(_) | Self::Failed { .. } => 1,
            Self::Usage(_) | Self::BadRequest(_) => 2,
            Self::Refused(_) => 3,
            Self::NotFound(_) => 4,
            Self::CannotConnect { .. } => 5,
        }
    }
}

/// A connection, with what error messages need.
pub struct Client {
    /// The service.
    pub query: Query,
    /// The service of those who act.
    pub manage: ManageClient<Channel>,
    url: String,
}

impl Client {
    /// Connects with the person's certificate.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let collector = config.collector.as_ref().ok_or(Error::NotConfigured)?;
        let channel = endpoint(collector)?
            .connect()
            .await
            .map_err(|error| cannot_connect(&collector.url, &error).unwrap_or_else(|| other(&collector.url, &error)))?;
        let manage = ManageClient::new(channel.clone());
        let query = QueryClient::new(channel)
            .max_decoding_message_size(GRPC_MESSAGE_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_MAX);
        Ok(Self { query, manage, url: collector.url.clone() })
    }

    /// What an answer's status means.
    pub fn explain(&self, status: &Status) -> Error {
        // What the collector says has no source; what does, happened on the way. With TLS 1.3 the collector looks at our certificate
        // after the handshake is done for us, so that its refusal arrives here, if it arrives.
        if let Some(source) = status.source() {
            return cannot_connect(&self.url, source).unwrap_or_else(|| Error::CannotConnect {
                url: self.url.clone(),
                reason: causes(source).join(": "),
                hint: CONNECTION_BROKE.to_owned(),
            });
        }
        let message = safe::text(status.message().as_bytes());
        match status.code() {
            Code::NotFound => Error::NotFound(message),
            Code::PermissionDenied | Code::Unauthenticated => Error::Refused(message),
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => Error::BadRequest(message),
            code => Error::Failed { code, message },
        }
    }
}

fn endpoint(collector: &Collector) -> Result<Endpoint, Error> {
    let pem = |key, path: &Path| {
        std::fs::read(path).map_err(|source| Error::Unreadable { key, path: path.display().to_string(), source })
    };
    let ca = Certificate::from_pem(pem("ca", &collector.ca)?);
    let identity = Identity::from_pem(pem("cert", &collector.cert)?, pem("key", &collector.key)?);
    let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(&collector.server_name);
    if !collector.url.starts_with("https://") {
        return Err(Error::Unusable(format!("url = {:?} must begin with https://", collector.url)));
    }
    let unusable = |error: tonic::transport::Error| Error::Unusable(causes(&error).join(": "));
    Ok(Endpoint::from_shared(collector.url.clone())
        .map_err(unusable)?
        .tls_config(tls)
        .map_err(unusable)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .tcp_nodelay(true))
}

/// An error of the network or of TLS, recognised among an error's causes.
fn cannot_connect(url: &str, error: &(dyn StdError + 'static)) -> Option<Error> {
    let (reason, hint) = chain(error).find_map(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        let tls = cause.downcast_ref::<rustls::Error>().or_else(|| io?.get_ref()?.downcast_ref::<rustls::Error>());
        tls.map(|tls| (tls.to_string(), tls_hint(tls))).or_else(|| io.map(|io| (io.to_string(), io_hint(io))))
    })?;
    Some(Error::CannotConnect { url: url.to_owned(), reason, hint: hint.to_owned() })
}

fn tls_hint(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(_) => {
            "The collector's certificate is not one to trust: check that collector.ca is its CA's certificate and that \
             collector.server_name is a name in its own."
        }
        rustls::Error::AlertReceived(_) => CERTIFICATE_REFUSED,
        _ => "Check that collector.url is the address of a breakglass-collector.",
    }
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(_) => "Check that breakglass-collector is running there and that collector.url is its address.",
        // Of an alert that comes after the handshake, HTTP/2 passes on the words only.
        None if error.to_string().contains("received fatal alert") => CERTIFICATE_REFUSED,
        // Or nothing of it at all, when the connection was closed before the alert was read.
        None => CONNECTION_BROKE,
    }
}

fn other(url: &str, error: &(dyn StdError + 'static)) -> Error {
    Error::CannotConnect {
        url: url.to_owned(),
        reason: causes(error).join(": "),
        hint: "Check collector.url, the name service and the network.".to_owned(),
    }
}

/// An error's text and those of its causes, each said once.
fn causes(error: &(dyn StdError + 'static)) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for text in chain(error).map(ToString::to_string) {
        if !said.last().is_some_and(|last| last.contains(&text)) {
            said.push(text);
        }
    }
    said
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source()).take(CAUSES_MAX)
}
