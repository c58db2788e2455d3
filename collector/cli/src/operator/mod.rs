//! Placeholder.

use clap::Args;

use crate::config::Config;

/// Arguments of `open`.
#[derive(Clone, Debug, Args)]
pub struct OpenArgs {
    host: Option<String>,
    #[arg(long)]
    json: bool,
}

/// Arguments of `close`.
#[derive(Clone, Debug, Args)]
pub struct CloseArgs {
    host: Option<String>,
}

/// Arguments of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    host: Option<String>,
}

/// Breaks the glass.
pub async fn run_open(args: &OpenArgs, _config: &Config) -> anyhow::Result<u8> {
    anyhow::bail!("open {:?} json={}", args.host, args.json)
}

/// Closes a session.
pub async fn run_close(args: &CloseArgs, _config: &Config) -> anyhow::Result<u8> {
    anyhow::bail!("close {:?}", args.host)
}

/// Asks a host how it is.
pub async fn run_status(args: &StatusArgs, _config: &Config) -> anyhow::Result<u8> {
    anyhow::bail!("status {:?}", args.host)
}
