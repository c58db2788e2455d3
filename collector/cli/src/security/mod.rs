//! What the security team asks the collector.

use std::time::{Duration, Instant};

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

use client::{Client, Error};

/// Exit code where everything went well but there was nothing to show.
const NOTHING_FOUND: u8 = 4;

/// How long a session that is to be followed may take to reach the collector: who was told of an opening asks at once, and the host's
/// record comes a moment after.
const ARRIVING: Duration = Duration::from_secs(5);

/// How often to ask again for what is on its way.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A connection to ask over and an output to answer on.
struct Desk {
    client: Client,
    printer: Printer,
}

impl Desk {
    async fn open(config: &Config, options: &Options) -> Result<Self> {
        Ok(Self { client: Client::connect(config).await?, printer: Printer::new(options) })
    }

    /// Finds a session by its id, or by a beginning or end of it, perhaps with its host before it. One that is to be followed is waited for, for a moment.
    async fn session_or_wait(&mut self, name: &str, follow: bool) -> Result<v1::Session> {
        let until = Instant::now() + if follow { ARRIVING } else { Duration::ZERO };
        let mut told = false;
        loop {
            match self.session(name).await {
                Err(error) if is_not_found(&error) && Instant::now() < until => {
                    if !std::mem::replace(&mut told, true) {
                        note("The collector has no such session yet: waiting a few seconds for it.");
                    }
                    tokio::time::sleep(ASK_EVERY).await;
                }
                answer => return answer,
            }
        }
    }

    /// Finds a session by its id, or by a beginning or end of it, perhaps with its host before it.
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

/// How to name a session to the collector once it was found as `asked`: with its host, if that was said. Then another host claims it too.
fn exact(asked: &str, session: &v1::Session) -> String {
    match asked.contains('/') {
        true => format!("{}/{}", session.host_id, session.id),
        false => session.id.clone(),
    }
}

/// Whether the collector answered that there is no such thing.
fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::NotFound(_)))
}
