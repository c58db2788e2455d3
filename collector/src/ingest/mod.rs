//! The ingest service: one stream an agent, frames in, acknowledgements out.
//!
//! Each connection checks its frames' structure and hash by itself; the [`committer`] checks the chain and writes. Memory is
//! bounded by [`QUEUE_BYTES`] over all connections and [`WINDOW`] frames for each: beyond them nothing is read from the socket,
//! and HTTP/2 flow control holds the agent back.

mod committer;
mod connection;
mod ledger;

use std::sync::Arc;

use breakglass_api::v1::ingest_server::Ingest;
use breakglass_api::v1::{AgentMessage, CollectorMessage};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::committer::{Committer, Submission};
use crate::access;
use crate::presence::Presence;
use crate::settings::Layout;
use crate::store::Store;

/// Bytes of frames on their way to the disk, over all connections. Room for a few of the largest frames.
const QUEUE_BYTES: usize = 128 * 1024 * 1024;
/// Frames on their way to the disk, over all connections.
const QUEUE_FRAMES: usize = 4096;
/// Frames of one connection on their way to the disk, so that one host's backlog leaves room for the others.
const WINDOW: usize = 512;
/// Messages ready for an agent that it has not read. Acknowledgements merge before they get here.
const REPLIES: usize = 8;

/// Smallest share of the queue that a frame takes, bytes: what it costs beside its content.
const FRAME_COST_MIN: usize = 512;

/// The ingest service.
#[derive(Clone)]
pub struct IngestService {
    shared: Arc<Shared>,
}

/// What all connections use.
struct Shared {
    store: Store,
    presence: Presence,
    layout: Layout,
    queue: mpsc::Sender<Submission>,
    room: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
}

impl IngestService {
    /// Starts the writer. It ends when the service and all its connections are gone.
    pub fn start(
        store: Store,
        presence: Presence,
        layout: Layout,
        durable: watch::Sender<i64>,
        shutdown: watch::Receiver<bool>,
    ) -> (Self, JoinHandle<()>) {
        let (queue, submissions) = mpsc::channel(QUEUE_FRAMES);
        let committer = tokio::spawn(Committer::new(store.clone(), durable).run(submissions));
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        (Self { shared: Arc::new(Shared { store, presence, layout, queue, room, shutdown }) }, committer)
    }
}

#[tonic::async_trait]
impl Ingest for IngestService {
    type StreamStream = ReceiverStream<Result<CollectorMessage, Status>>;

    async fn stream(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = access::host(&request, &self.shared.layout)?;
        let from = request.remote_addr();
        let (replies, outgoing) = mpsc::channel(REPLIES);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            connection::run(shared, peer, from, request.into_inner(), replies).await;
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
