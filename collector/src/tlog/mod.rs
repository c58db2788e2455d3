//! The transparency log of the hosts' checkpoints, and the witness that another team can run.
//!
//! The log holds leaves in the order in which they came, as a Merkle tree (RFC 6962) in files that anybody may copy and
//! check (C2SP tlog-tiles). Its checkpoints say how large the tree is and what its root is, are signed with the log's key,
//! and are cosigned by witnesses, each of which makes sure that the tree only ever grows. So the collector's own
//! administrator cannot take back or change what was logged without two checkpoints existing that contradict each other.
//!
//! | module | what it does |
//! |---|---|
//! | [`log`] | the order of durable steps from leaf to published checkpoint |
//! | [`leaves`] | which leaf has which index |
//! | [`tree`], [`tile`] | the tree in tiles, proofs from it |
//! | [`note`] | keys, checkpoints, signatures; with whoever verifies in a crate of its own |
//! | [`publish`], [`client`] | rounds of signing, cosigning, publishing; asking a witness |
//! | [`serve`], [`http`] | the log over HTTP |
//! | [`remote`] | the log of others, read whole |
//! | [`witness`] | the other side: cosigning the logs of others |
//!
//! *Invariant:* nothing here knows what a leaf means. *Invariant:* nothing waits for a witness but the publisher.

pub mod client;
pub mod disk;
#[cfg(test)]
mod fake;
pub mod http;
pub mod leaves;
pub mod log;
pub mod publish;
pub mod remote;
pub mod request;
pub mod serve;
pub mod settings;
pub mod tile;
pub mod tree;
pub mod witness;

pub use breakglass_proof::note;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use signed_note::Verifier;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::pki::read_private_key;
use disk::OsDisk;
use log::{Log, Paths};
use note::{KeyType, NoteKey};
use publish::{Publisher, Status};
use settings::LogSettings;

/// A log with its publisher and, if the settings say so, its HTTP server.
pub struct LogService {
    log: Arc<Log>,
    status: watch::Receiver<Status>,
    address: Option<SocketAddr>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

impl LogService {
    /// Opens the log in folder `root` and starts to publish and serve it, until `stopping` is true.
    pub async fn start(
        root: &Path,
        key: &Path,
        settings: &LogSettings,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let witnesses = settings.witnesses()?;
        let key = read_key(key, KeyType::Note)?;
        let name = key.public().name();
        ensure!(
            settings.origin == name,
            "[log] origin is {:?}, but log.key is that of {name:?}; a log's name is for ever",
            settings.origin
        );
        let disk = Arc::new(OsDisk);
        let log = Log::open(disk.clone(), Paths::new(root), key).await.context("cannot open the transparency log")?;
        let mut tasks = Vec::new();
        let mut listening = None;
        if let Some(address) = settings.listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address} ([log] listen in collector.toml)"))?;
            let address = listener.local_addr().context("cannot tell the listening address")?;
            tracing::info!(%address, "serving the transparency log");
            listening = Some(address);
            let routes = serve::routes(disk, log.paths().clone());
            tasks.push(("log server", tokio::spawn(http::serve(listener, routes, stopping.clone()))));
        }
        let http = client::http().context("cannot set up https to witnesses")?;
        let publisher = Publisher::new(log.clone(), http, witnesses, settings.quorum);
        let status = publisher.status();
        tasks.push(("log publisher", tokio::spawn(publisher.run(stopping))));
        Ok(Self { log, status, address: listening, tasks })
    }

    /// The log, to append to.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// What the publisher knows, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Where the log is served, if it is.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What ends after `stopping` has become true, by name.
    pub fn into_tasks(self) -> Vec<(&'static str, JoinHandle<()>)> {
        self.tasks
    }
}

/// Reads a private key of the given type.
pub fn read_key(path: &Path, kind: KeyType) -> anyhow::Result<NoteKey> {
    let key = NoteKey::from_secret(&read_private_key(path)?).with_context(|| path.display().to_string())?;
    ensure!(key.public().kind() == kind, "{} holds a key of the wrong type: {}", path.display(), key.public());
    Ok(key)
}
