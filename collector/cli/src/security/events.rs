//! `breakglass events`.

use anyhow::Result;
use breakglass_api::v1;
use clap::Args;

use super::{Desk, NOTHING_FOUND, client::Error, exact};
use crate::{
    config::Config,
    print::{Options, json, safe},
};

/// Arguments of `events`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Prints one JSON object a line, with or without --json: every event as it was recorded, in recorded order.

Examples:
  breakglass events 5f2c9a1e | jq -c 'select(.event.kind == \"exec\") | .event.exec.argv'
  breakglass events 5f2c9a1e --follow --kind alert,gap")]
pub struct EventsArgs {
    /// The session: its id, or an unambiguous end or beginning of it; HOST/ID where several hosts have it.
    session: String,
    /// Go on as events come in, until the session is closed.
    #[arg(long, short)]
    follow: bool,
    /// Only events of frames after this one.
    #[arg(long, default_value_t = 0, value_name = "FRAME")]
    after: u64,
    /// Only events of these kinds, as "kind" calls them; more than one may be given.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    kind: Vec<String>,
}

/// Prints events.
pub async fn run(args: &EventsArgs, config: &Config, options: &Options) -> Result<u8> {
    let known = json::event_kinds()?;
    if let Some(unknown) = args.kind.iter().find(|kind| !known.contains(kind)) {
        let unknown = safe::text(unknown.as_bytes());
        return Err(Error::Usage(format!("no event is of kind {unknown:?}; there are {}", known.join(", "))).into());
    }
    let mut desk = Desk::open(config, options).await?;
    let session = desk.session_or_wait(&args.session, args.follow).await?;
    let follow = args.follow && session.closed_ns == 0;
    let request = v1::EventsRequest {
        session: exact(&args.session, &session),
        host: String::new(),
        after_frame: args.after,
        follow,
        kinds: args.kind.clone(),
    };
    let Desk { client, printer } = &mut desk;
    let answer = client.query.events(request).await;
    let mut events = answer.map_err(|status| client.explain(&status))?.into_inner();
    let mut any = false;
    while let Some(event) = events.message().await.map_err(|status| client.explain(&status))? {
        any = true;
        printer.json(&event)?;
        if follow {
            printer.flush()?;
            if super::show::is_close(&event) {
                break;
            }
        }
    }
    printer.flush()?;
    Ok(if any { 0 } else { NOTHING_FOUND })
}
