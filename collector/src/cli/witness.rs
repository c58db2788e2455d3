//! `breakglass-collector witness`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tokio::sync::watch;

use super::runtime;
use crate::server::{Signals, announce};
use crate::tlog::witness::server::WitnessServer;
use crate::tlog::witness::settings::{KnownLog, Layout, WitnessSettings};

#[derive(Debug, Args)]
pub struct Witness {
    #[command(subcommand)]
    command: Option<WitnessCommand>,
    #[command(flatten)]
    serve: Option<Serve>,
}

/// Serves a witness until SIGTERM or SIGINT.
#[derive(Debug, Args)]
struct Serve {
    /// The witness's folder, as made by `witness init`.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Listen here instead of the address in witness.toml; port 0 lets the system choose.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
enum WitnessCommand {
    /// Make a new witness: its folder, its key and its settings. Prints its verifier key.
    #[command(
        after_help = "Logs can be added later in witness.toml, each as\n\n  [[log]]\n  key = \"NAME+ID+BASE64\"\n\n\
        Example:\n  breakglass-collector witness init --dir /srv/witness --name w.example.org/1"
    )]
    Init(Init),
}

#[derive(Debug, Args)]
struct Init {
    /// The folder to make. It may exist, but not hold a witness.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The witness's name, for ever: best a URL without its scheme.
    #[arg(long)]
    name: String,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7446")]
    listen: SocketAddr,
    /// The verifier key of a log to cosign; may be given more than once.
    #[arg(long = "log", value_name = "KEY")]
    logs: Vec<String>,
}

impl Witness {
    pub fn run(&self) -> anyhow::Result<()> {
        match (&self.command, &self.serve) {
            (Some(WitnessCommand::Init(init)), _) => init.run(),
            (None, Some(serve)) => runtime()?.block_on(serve.run()),
            (None, None) => anyhow::bail!("say which witness with --dir FOLDER, or make one with: witness init"),
        }
    }
}

impl Init {
    fn run(&self) -> anyhow::Result<()> {
        let logs = self.logs.iter().map(|key| KnownLog { key: key.clone(), origin: None }).collect();
        let settings = WitnessSettings { listen: self.listen, logs };
        let key = Layout::new(&self.dir).create(&self.name, &settings)?;
        // Nothing else on standard output: scripts take it from there.
        println!("{}", key.public());
        eprintln!(
            "The witness {} is ready in {dir}. Its verifier key, for collector.toml and auditors, is above.\n\
             Start it:  breakglass-collector witness --dir {dir}\n\
             Never put back an old copy of {dir}/state: make a new witness instead.",
            self.name,
            dir = self.dir.display()
        );
        Ok(())
    }
}

impl Serve {
    async fn run(&self) -> anyhow::Result<()> {
        let server = WitnessServer::open(&self.dir, self.listen).await?;
        for (origin, size) in server.witness().sizes() {
            tracing::info!(origin, size, "witnessing");
        }
        let mut signals = Signals::new()?;
        announce(server.address()?)?;
        let (stop, stopping) = watch::channel(false);
        let serving = tokio::spawn(server.serve(stopping));
        // Not within the macro, which does not run its arguments when the level is off.
        let signal = signals.wait().await;
        tracing::info!(signal, "stopping");
        stop.send_replace(true);
        Ok(serving.await?)
    }
}
