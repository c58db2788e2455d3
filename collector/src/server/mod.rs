//! Puts the parts together and serves until told to stop.

mod sources;
mod tls;

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use breakglass_api::GRPC_MESSAGE_MAX;
use breakglass_api::v1::DESCRIPTORS;
use breakglass_api::v1::enrol_server::EnrolServer;
use breakglass_api::v1::ingest_server::IngestServer;
use breakglass_api::v1::manage_server::ManageServer;
use breakglass_api::v1::query_server::QueryServer;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::access;
use crate::desk::Desk;
use crate::enrol::EnrolService;
use crate::feed::Feed;
use crate::index::Indexer;
use crate::ingest::IngestService;
use crate::manage::ManageService;
use crate::presence::Presence;
use crate::query::{QueryService, Signing};
use crate::reviews::book::Book;
use crate::reviews::queue::Queue;
use crate::settings::Layout;
use crate::silence::Watchman;
use crate::store::Store;
use crate::tlog::LogService;

/// How often a silent connection is probed, and how long the answer may take: a dead agent is noticed within 8 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(4);
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// Bytes that one stream, and one connection, may have in flight before they are read. Above the bandwidth-delay product of
/// a fast link across a continent; what is buffered beyond is bounded by the ingest queue.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Calls at once over one connection. A host has two at most; a reader follows a few sessions.
const STREAMS_MAX: u32 = 64;
/// Connections whose handshake is done and that the server has not taken up yet.
const READY_CONNECTIONS: usize = 16;
/// Largest message of calls that are words and numbers, bytes.
const SMALL_MESSAGE_MAX: usize = 64 * 1024;
/// How long open streams may take to end after a signal.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// Serves the folder `layout` until SIGTERM or SIGINT. `listen` overrides the address in the settings.
pub async fn run(layout: &Layout, listen: Option<SocketAddr>) -> anyhow::Result<()> {
    let settings = layout.settings()?;
    let acceptor = tls::acceptor(layout)?;
    let _lock = layout.lock()?;
    let store = Store::open(&layout.frames_db()).await?;
    let (stop, stopping) = watch::channel(false);
    let (durable, followed) = watch::channel(store.last_arrival().await?);
    let indexer = Indexer::open(store.clone(), &layout.index_db()).await?;
    let tlog = LogService::start(&layout.log(), &layout.log_key(), &settings.log, stopping.clone()).await?;
    let log = tlog.log().clone();

    let presence = Presence::default();
    let desk = Desk::open(&layout.desk_db()).await?;
    let (ingest, committer) =
        IngestService::start(store.clone(), presence.clone(), layout.clone(), durable, stopping.clone());
    let book = Book::open(&layout.reviews_db()).await?;
    let queue = Queue::new(store.clone(), indexer.reader(), book.clone(), settings.review);
    let overdue = tokio::spawn(queue.clone().watch(stopping.clone()));
    let signing = Signing { log: log.clone(), queue, reviewers: layout.reviewers() };
    let query = QueryService::new(store.clone(), indexer.reader(), presence.clone(), signing, stopping.clone());
    let feed = Feed::new(indexer.reader(), log.clone(), indexer.source());
    let feeding = tokio::spawn(feed.run(stopping.clone()));
    let manage = ManageService::new(query.clone(), presence.clone(), desk.clone());
    let validity = time::Duration::minutes(settings.enrol.host_minutes.into());
    let enrol = EnrolService::new(layout, desk.clone(), validity);
    let at = layout.clone();
    let retired = Box::new(move |host_id: &str| at.is_retired(host_id));
    let watchman =
        Watchman::new(store.clone(), indexer.reader(), presence, desk.clone(), settings.alarms.clone(), retired);
    let watching = tokio::spawn(watchman.await?.with_certificate(&layout.cert()).run(stopping.clone()));
    let indexing = tokio::spawn(indexer.follow(followed));

    let listener = bind(listen.unwrap_or(settings.listen)).await?;
    let address = listener.local_addr().context("cannot tell the listening address")?;
    let (ready, connections) = mpsc::channel(READY_CONNECTIONS);
    let accepting = tokio::spawn(tls::accept(listener, acceptor, ready));
    let signals = Signals::new()?;
    announce(address)?;

    let served = serve(Services { ingest, query, manage, enrol }, connections, signals, stop).await;
    accepting.abort();
    // The writer ends with the last connection, the indexer when the writer no longer announces anything.
    let parts = [
        ("writer", committer),
        ("indexer", indexing),
        ("log feed", feeding),
        ("reviews", overdue),
        ("watchman", watching),
    ];
    for (part, task) in parts.into_iter().chain(tlog.into_tasks()) {
        match tokio::time::timeout(SHUTDOWN_MAX, task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, part, "failed"),
            Err(_) => tracing::warn!(part, "did not end in time; nothing acknowledged is lost"),
        }
    }
    log.close().await;
    book.close().await;
    desk.close().await;
    if tokio::time::timeout(SHUTDOWN_MAX, store.close()).await.is_err() {
        tracing::warn!("the store is still being read; nothing acknowledged is lost");
    }
    tracing::info!("stopped");
    served
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| match address.port() {
        0 => format!("cannot listen on {address}"),
        port => format!("cannot listen on {address}: is port {port} in use? choose another address with --listen"),
    })
}

/// What is served to whom: `access` decides.
struct Services {
    ingest: IngestService,
    query: QueryService,
    manage: ManageService,
    enrol: EnrolService,
}

async fn serve(
    services: Services,
    connections: mpsc::Receiver<std::io::Result<tls::Connection>>,
    mut signals: Signals,
    stop: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let Services { ingest, query, manage, enrol } = services;
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<IngestServer<IngestService>>().await;
    reporter.set_serving::<QueryServer<QueryService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("cannot describe the services")?;
    // They check nobody by themselves.
    let (health, reflection) = (guarded(health), guarded(reflection));
    let ingest = IngestServer::new(ingest)
        .max_decoding_message_size(GRPC_MESSAGE_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_MAX);
    // A question is read before anybody looks at who asks: only answers may be large.
    let query = QueryServer::new(query)
        .max_decoding_message_size(SMALL_MESSAGE_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_MAX);
    let mut stopping = stop.subscribe();
    let server = Server::builder()
        .http2_keepalive_interval(Some(PROBE_INTERVAL))
        .http2_keepalive_timeout(Some(PROBE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(health)
        .add_service(reflection)
        .add_service(ingest)
        .add_service(query)
        .add_service(ManageServer::new(manage).max_decoding_message_size(SMALL_MESSAGE_MAX))
        .add_service(EnrolServer::new(enrol).max_decoding_message_size(SMALL_MESSAGE_MAX))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
            let name = signals.wait().await;
            tracing::info!(signal = name, "stopping");
            let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
            stop.send_replace(true);
        });
    let overdue = async {
        // The sender lives as long as the server, which the other branch waits for.
        if stopping.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SHUTDOWN_MAX).await;
    };
    tokio::select! {
        served = server => served.context("the server failed"),
        () = overdue => {
            tracing::warn!("connections did not end in time and are cut");
            Ok(())
        }
    }
}

/// A check of a request before it gets to its service.
type Guard = fn(Request<()>) -> Result<Request<()>, Status>;

/// A service for anybody with a certificate.
fn guarded<S>(service: S) -> InterceptedService<S, Guard> {
    InterceptedService::new(service, access::anybody)
}

/// Tells whoever started this that it is ready.
pub(crate) fn announce(address: SocketAddr) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}")
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")?;
    tracing::info!(%address, "listening");
    if let Err(error) = sd_notify::notify(false, &[NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that it is ready");
    }
    Ok(())
}

/// The signals that end the server.
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        })
    }

    pub(crate) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
