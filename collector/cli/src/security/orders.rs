//! `breakglass terminate`, `refresh` and `reach`: what reviewers and administrators ask of a host by way of the collector.

use anyhow::Result;
use breakglass_api::v1;
use clap::Args;

use super::Desk;
use crate::{
    config::Config,
    print::{Options, note, safe, short_id},
};

/// Arguments of `terminate`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  breakglass terminate 5f2c9a1e --reason 'not the work that was agreed on'")]
pub struct TerminateArgs {
    /// The session's id, or an unambiguous beginning or end of it; HOST/ID where several hosts have it.
    session: String,
    /// Why; it is recorded on the host and at the collector.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Arguments of `refresh`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  breakglass refresh web1 --reason 'new allowed operators'")]
pub struct RefreshArgs {
    /// The host's name or id.
    host: String,
    /// Why; it is recorded on the host and at the collector.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Arguments of `reach`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  breakglass reach web1")]
pub struct ReachArgs {
    /// The host's name or id.
    host: String,
}

/// Exit code where the host, or the way to it, did not do what was asked.
const NOT_DONE: u8 = 3;

/// Ends a session.
pub async fn run_terminate(args: &TerminateArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let request = v1::TerminateRequest { session: args.session.clone(), reason: args.reason.clone() };
    let answer = desk.client.manage.terminate(request).await;
    told(desk, answer)
}

/// Has a host read its rules anew.
pub async fn run_refresh(args: &RefreshArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let request = v1::RefreshRequest { host: args.host.clone(), reason: args.reason.clone() };
    let answer = desk.client.manage.refresh(request).await;
    told(desk, answer)
}

/// Asks a host for an answer.
pub async fn run_reach(args: &ReachArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let answer = desk.client.manage.reach(v1::ReachRequest { host: args.host.clone() }).await;
    told(desk, answer)
}

fn told(mut desk: Desk, answer: Result<tonic::Response<v1::OrderAnswer>, tonic::Status>) -> Result<u8> {
    let answer = answer.map_err(|status| desk.client.explain(&status))?.into_inner();
    let done = answer.code == "done";
    let printer = &mut desk.printer;
    if printer.is_json() {
        printer.json(&answer)?;
    } else {
        let text = |s: &str| safe::text(s.as_bytes());
        let session =
            if answer.session.is_empty() { String::new() } else { format!(", session {}", short_id(&answer.session)) };
        let milliseconds = answer.took_us / 1000;
        let line = format!("{}{session}: {} ({milliseconds} ms)", text(&answer.hostname), text(&answer.message));
        match done {
            true => printer.line(&line)?,
            false => note(&format!("{line} [{}]", text(&answer.code))),
        }
    }
    printer.flush()?;
    Ok(if done { 0 } else { NOT_DONE })
}
