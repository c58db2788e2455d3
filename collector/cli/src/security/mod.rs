//! What the security team asks the collector.

use anyhow::Result;
use breakglass_api::v1;

use crate::{
    config::Config,
    print::{Options, Printer, note},
};

pub mod alerts;
pub mod client;
pub mod events;
pub mod export;
pub mod hosts;
pub mod orders;
pub mod replay;
pub mod review;
pub mod search;
pub mod sessions;
pub mod show;

use client::Client;

/// Exit code where everything went well but there was nothing to show.
const NOTHING_FOUND: u8 = 4;

/// A connection to ask over and an output to answer on.
struct Desk {
    client: Client,
    printer: Printer,
}

impl Desk {
    async fn open(config: &Config, options: &Options) -> Result<Self> {
        Ok(Self { client: Client::connect(config).await?, printer: Printer::new(options) })
    }

    /// Finds a session by its id, or by a beginning or end of it.
    async fn session(&mut self, name: &str) -> Result<v1::Session> {
        let request = v1::GetSessionRequest { session: name.to_owned() };
        let answer = self.client.query.get_session(request).await;
        let session = answer.map_err(|status| self.client.explain(&status))?.into_inner();
        if session.behind {
            note(
                "The collector is behind: there may be more of this session than it can show yet. Ask again in a moment.",
            );
        }
        Ok(session)
    }
}
