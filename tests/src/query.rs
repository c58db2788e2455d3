//! A reviewer's view of the collector over gRPC, for comparisons down to the byte.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use breakglass_api::{
    GRPC_MESSAGE_MAX,
    v1::{
        Command, EventsRequest, GetSessionRequest, Host, ListCommandsRequest, ListHostsRequest, ListSessionsRequest,
        RecordedEvent, ReplayItem, ReplayRequest, SearchHit, SearchRequest, Session, query_client::QueryClient,
        replay_item,
    },
};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tonic::{
    Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::poll;

/// A client of the Query service that blocks.
#[derive(Debug)]
pub struct Query {
    runtime: Runtime,
    client: QueryClient<Channel>,
}

/// Certificates of a person or a host as `breakglass-collector enroll` wrote them, for `server_name`.
pub fn tls(folder: &Path, leaf: &str, server_name: &str) -> Result<ClientTlsConfig> {
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| format!("{}/{name}", folder.display()));
    Ok(ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.crt")?))
        .identity(Identity::from_pem(read(&format!("{leaf}.crt"))?, read(&format!("{leaf}.key"))?))
        .domain_name(server_name))
}

impl Query {
    /// Prepares a connection to `address` as the person enrolled in `folder`; it is made at the first call, and again after a cut.
    pub fn new(address: SocketAddr, folder: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls(folder, "person", "collector")?)?
            .timeout(poll::EVENTUALLY);
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self { runtime, client: QueryClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_MAX) })
    }

    /// All hosts.
    pub fn hosts(&mut self) -> Result<Vec<Host>> {
        Ok(self.runtime.block_on(self.client.list_hosts(ListHostsRequest {}))?.into_inner().hosts)
    }

    /// The newest sessions first.
    pub fn sessions(&mut self) -> Result<Vec<Session>> {
        let request = ListSessionsRequest::default();
        Ok(self.runtime.block_on(self.client.list_sessions(request))?.into_inner().sessions)
    }

    /// One session.
    pub fn session(&mut self, session: &str) -> Result<Session> {
        let request = GetSessionRequest { session: session.into() };
        Ok(self.runtime.block_on(self.client.get_session(request))?.into_inner())
    }

    /// A session's commands in order.
    pub fn commands(&mut self, session: &str) -> Result<Vec<Command>> {
        let request = ListCommandsRequest { session: session.into(), ..Default::default() };
        self.runtime.block_on(async { collect(self.client.list_commands(request).await?.into_inner()).await })
    }

    /// Everything recorded of a session, in recorded order.
    pub fn events(&mut self, session: &str) -> Result<Vec<RecordedEvent>> {
        self.events_of(EventsRequest { session: session.into(), ..Default::default() })
    }

    /// Everything recorded of a host, in recorded order.
    pub fn host_events(&mut self, host: &str) -> Result<Vec<RecordedEvent>> {
        self.events_of(EventsRequest { host: host.into(), ..Default::default() })
    }

    /// What was recorded of a host behind a frame, in recorded order.
    pub fn host_events_after(&mut self, host: &str, frame: u64) -> Result<Vec<RecordedEvent>> {
        self.events_of(EventsRequest { host: host.into(), after_frame: frame, ..Default::default() })
    }

    fn events_of(&mut self, request: EventsRequest) -> Result<Vec<RecordedEvent>> {
        self.runtime.block_on(async { collect(self.client.events(request).await?.into_inner()).await })
    }

    /// Everything that all terminals of a session showed, with what is missing.
    pub fn replay(&mut self, session: &str) -> Result<Vec<ReplayItem>> {
        let request = ReplayRequest { session: session.into(), all_terminals: true, input: true, ..Default::default() };
        self.runtime.block_on(async { collect(self.client.replay(request).await?.into_inner()).await })
    }

    /// The bytes that a session's first terminal showed.
    pub fn output(&mut self, session: &str) -> Result<Vec<u8>> {
        let request = ReplayRequest { session: session.into(), ..Default::default() };
        let items: Vec<ReplayItem> =
            self.runtime.block_on(async { collect(self.client.replay(request).await?.into_inner()).await })?;
        let pieces = items.into_iter().filter_map(|item| match item.body {
            Some(replay_item::Body::Output(output)) => Some(output.data),
            _ => None,
        });
        Ok(pieces.flatten().collect())
    }

    /// Searches everywhere.
    pub fn search(&mut self, text: &str) -> Result<Vec<SearchHit>> {
        let request = SearchRequest { text: text.into(), ..Default::default() };
        Ok(self.runtime.block_on(self.client.search(request))?.into_inner().hits)
    }
}

async fn collect<T>(mut stream: Streaming<T>) -> Result<Vec<T>> {
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item?);
    }
    Ok(items)
}
