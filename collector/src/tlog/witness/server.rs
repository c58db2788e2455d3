//! The witness over HTTP: `POST /add-checkpoint`, `GET /<origin hash>/checkpoint`.

use std::path::Path as FilePath;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::settings::Layout;
use super::state::{Refusal, Witness, ensure_kept};
use crate::tlog::disk::OsDisk;
use crate::tlog::http;
use crate::tlog::note::KeyType;
use crate::tlog::read_key;
use crate::tlog::request::{REQUEST_MAX, SIZE_TYPE};

const TEXT: &str = "text/plain; charset=utf-8";

/// A witness that is ready to serve.
pub struct WitnessServer {
    witness: Arc<Witness>,
    listener: TcpListener,
    /// Keeps others from using the folder.
    _lock: std::fs::File,
}

impl WitnessServer {
    /// Opens the witness in folder `dir` and listens; `listen` overrides the address in its settings.
    pub async fn open(dir: &FilePath, listen: Option<std::net::SocketAddr>) -> anyhow::Result<Self> {
        let layout = Layout::new(dir);
        let settings = layout.settings()?;
        let key = read_key(&layout.key(), KeyType::Cosignature)?;
        ensure_kept(&OsDisk, &layout.state())?;
        // First: a witness that still runs may cosign more, and what is read before that is signed twice.
        let lock = crate::settings::take_lock(&layout.state())?;
        let witness = Witness::open(Arc::new(OsDisk), &layout.state(), key, settings.keys()?)?;
        let address = listen.unwrap_or(settings.listen);
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        Ok(Self { witness: Arc::new(witness), listener, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> anyhow::Result<std::net::SocketAddr> {
        self.listener.local_addr().context("cannot tell the listening address")
    }

    /// What it serves.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Serves until `stopping` is true.
    pub async fn serve(self, stopping: watch::Receiver<bool>) {
        http::serve(self.listener, routes(self.witness), stopping).await;
    }
}

/// The routes of a witness.
pub fn routes(witness: Arc<Witness>) -> Router {
    Router::new()
        .route("/add-checkpoint", post(add_checkpoint))
        .route("/{hash}/checkpoint", get(checkpoint))
        .layer(DefaultBodyLimit::max(REQUEST_MAX))
        .with_state(witness)
}

async fn add_checkpoint(State(witness): State<Arc<Witness>>, body: Bytes) -> Response {
    let now = u64::try_from(crate::wall_clock_ns() / 1_000_000_000).unwrap_or(0);
    // Not without a clock: what it says would be untrue.
    let handled = match now {
        0 => Ok(Err(Refusal::Clock)),
        now => tokio::task::spawn_blocking(move || witness.add_checkpoint(&body, now)).await,
    };
    match handled {
        Ok(Ok(line)) => ([(CONTENT_TYPE, TEXT)], line).into_response(),
        Ok(Err(refusal)) => refuse(&refusal),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn refuse(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Size(size) => {
            return (StatusCode::CONFLICT, [(CONTENT_TYPE, SIZE_TYPE)], format!("{size}\n")).into_response();
        }
        Refusal::TooMany => {
            return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")], format!("{refusal}\n")).into_response();
        }
        Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
        Refusal::UnknownLog => StatusCode::NOT_FOUND,
        Refusal::Signature(_) => StatusCode::FORBIDDEN,
        Refusal::Inconsistent(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::Clock | Refusal::Storage => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{refusal}\n")).into_response()
}

async fn checkpoint(State(witness): State<Arc<Witness>>, Path(hash): Path<String>) -> Response {
    match witness.checkpoint(&hash) {
        Some(note) => ([(CONTENT_TYPE, TEXT), (CACHE_CONTROL, "public, max-age=1")], note).into_response(),
        None => (StatusCode::NOT_FOUND, "nothing of this log was cosigned\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::note::NoteKey;
    use crate::tlog::witness::settings::{KnownLog, WitnessSettings};
    use crate::tlog::witness::state::origin_hash;

    #[tokio::test]
    async fn what_was_cosigned_is_read_under_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let log = NoteKey::generate("log.example", KeyType::Note).unwrap();
        let logs = vec![KnownLog { key: log.public().to_string(), origin: None }];
        let settings = WitnessSettings { listen: "127.0.0.1:0".parse().unwrap(), logs };
        let home = dir.path().join("w");
        let layout = Layout::new(&home);
        layout.create("w.example", &settings).unwrap();
        let held = crate::settings::take_lock(&layout.state()).unwrap();
        // As it may be found while another process is about to replace it.
        std::fs::write(layout.state().join(origin_hash("log.example")), "half").unwrap();
        let refused = async || format!("{:#}", WitnessServer::open(&home, None).await.err().unwrap());
        let second = refused().await;
        assert!(second.contains("another breakglass-collector"), "{second}");
        drop(held);
        let damaged = refused().await;
        assert!(!damaged.contains("another breakglass-collector"), "{damaged}");
    }
}
