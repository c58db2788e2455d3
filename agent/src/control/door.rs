//! The TLS door, which may have to wait: its port is taken, its address not there yet, the host not enrolled.
//!
//! That keeps nobody from the Unix socket, and the agent from nothing: whoever binds the port while the agent starts again would
//! otherwise have ended recording and the way in by the console too.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use breakglass_api::v1::Alert;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_rustls::TlsAcceptor;

use super::{ControlError, Options, Sessions, listen};
use crate::blocking;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(2);

/// Where the TLS door stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// None is asked for.
    Unwanted,
    /// It was not tried yet.
    Untried,
    /// It cannot be opened, and why; it is tried again.
    Closed(String),
    /// It serves here.
    Open(SocketAddr),
}

impl Door {
    /// Where it serves.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Open(address) => Some(*address),
            _ => None,
        }
    }

    /// Why it is closed; empty where it is not.
    pub fn error(&self) -> &str {
        match self {
            Self::Closed(error) => error,
            _ => "",
        }
    }
}

/// Opens the door, however often that has to be tried, and tells of each new reason why it stays closed. Dropped when the agent stops.
pub async fn open<S: Sessions>(
    address: SocketAddr,
    options: &Options,
    sessions: &Arc<S>,
    door: &watch::Sender<Door>,
) -> (TcpListener, TlsAcceptor) {
    loop {
        let error = match attempt(address, options).await {
            Ok((listener, acceptor, real)) => {
                if let Door::Closed(_) = door.send_replace(Door::Open(real)) {
                    let message = format!("operators are served over TLS on {real} now");
                    tracing::info!("{message}");
                    record(sessions, "door-open", message);
                }
                return (listener, acceptor);
            }
            Err(error) => error.to_string(),
        };
        if door.borrow().error() != error {
            let message = format!("operators are served by the Unix socket only, until this is mended: {error}");
            tracing::error!("{message}");
            record(sessions, "door-closed", message);
            door.send_replace(Door::Closed(error));
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(
    address: SocketAddr,
    options: &Options,
) -> Result<(TcpListener, TlsAcceptor, SocketAddr), ControlError> {
    let enrolment = options.enrolment.clone();
    let config = blocking::run(move || listen::tls(&enrolment)).await?;
    let (listener, real) = listen::tcp(address).await?;
    if let Err(error) = listen::write_address(&options.runtime, real) {
        // Who is told the port by the configuration gets in all the same.
        tracing::error!("the TLS door serves on {real}, and programs that look up where are not told: {error}");
    }
    Ok((listener, TlsAcceptor::from(config), real))
}

/// Not waited for: a disk that hangs keeps the door from nothing.
fn record<S: Sessions>(sessions: &Arc<S>, code: &str, message: String) {
    let alert = Alert { code: code.to_owned(), message, process: None };
    let sessions = Arc::clone(sessions);
    tokio::spawn(async move { sessions.alert(alert).await });
}
