//! The command line of `breakglass-collector`.

mod audit;
mod enroll;
mod init;
mod log;
mod witness;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::index::Indexer;
use crate::pki::{Owner, Role};
use crate::settings::Layout;
use crate::store::Store;

/// Receives what the agents of Breakglass record, keeps it, and answers questions about it.
#[derive(Debug, Parser)]
#[command(name = "breakglass-collector", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new collector: its folder, its private CA, its certificate and its settings.
    #[command(
        after_help = "Example:\n  breakglass-collector init --dir /var/lib/breakglass-collector --san collector.example.org"
    )]
    Init(init::Init),
    /// Serve agents and people until SIGTERM or SIGINT.
    #[command(
        after_help = "Prints \"listening on ADDRESS\" when ready. What is logged: BREAKGLASS_LOG=debug and so on.\n\n\
        Example:\n  breakglass-collector serve --dir /var/lib/breakglass-collector"
    )]
    Serve(Serve),
    /// Give a host, a person or the collector itself a certificate.
    #[command(subcommand)]
    Enroll(enroll::Enroll),
    /// Build every index again from the raw frames. The collector must not be running.
    #[command(after_help = "Example:\n  breakglass-collector reindex --dir /var/lib/breakglass-collector")]
    Reindex(Folder),
    /// Look at the transparency log.
    #[command(subcommand)]
    Log(log::Log),
    /// Cosign the transparency logs of others, as long as they only grow.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  breakglass-collector witness init --dir /srv/witness --name w.example.org/1\n  \
        breakglass-collector witness --dir /srv/witness --listen 0.0.0.0:7446"
    )]
    Witness(witness::Witness),
}

/// The collector's folder.
#[derive(Debug, Args)]
struct Folder {
    /// The collector's folder, as made by init.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    folder: Folder,
    /// Listen here instead of the address in collector.toml; port 0 lets the system choose.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// Runs the program: 0 for success, 1 for failure, 2 for a mistake on the command line, 3 where an audit found something.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("BREAKGLASS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log line must never end the program: a subscriber that is set already is as good.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("breakglass-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Init(init) => init.run(),
        Command::Enroll(enroll) => enroll.run(),
        Command::Serve(serve) => {
            let layout = Layout::new(&serve.folder.dir);
            runtime()?.block_on(crate::server::run(&layout, serve.listen))
        }
        Command::Reindex(folder) => {
            let layout = Layout::new(&folder.dir);
            runtime()?.block_on(reindex(&layout))
        }
        Command::Log(log) => return log.run(),
        Command::Witness(witness) => witness.run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

async fn reindex(layout: &Layout) -> anyhow::Result<()> {
    layout.settings()?;
    let _lock = layout.lock()?;
    let store = Store::open(&layout.frames_db()).await?;
    let done = Indexer::rebuild(store.clone(), &layout.index_db()).await?;
    store.close().await;
    // Root may have built it, for a service that runs as another user.
    let owner = Owner::of(&layout.data())?;
    for path in [layout.frames_db(), layout.index_db()] {
        owner.take(&path)?;
    }
    println!("indexed {} frames with {} events", done.frames, done.events);
    Ok(())
}

/// Parses the role of a person.
fn person_role(word: &str) -> Result<Role, String> {
    let role: Role = word.parse().map_err(|error: crate::pki::PeerError| error.to_string())?;
    match role.is_person() {
        true => Ok(role),
        false => Err(format!("{role} is not a role of a person: choose operator, reviewer or admin")),
    }
}
