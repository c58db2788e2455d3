//! `breakglass export`.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use breakglass_api::v1;
use breakglass_proof::note::SignedCheckpoint;
use clap::Args;
use tempfile::NamedTempFile;

use super::{Desk, client::Client, exact};
use crate::{
    config::Config,
    print::{Options, bytes, note},
};

/// Arguments of `export`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The file holds the session's frames, what the host signed, and the keys to verify it: nothing else is needed, neither the
collector nor this program. It also holds what else the host recorded meanwhile, the reviews, and the proof that what the host signed is in
the transparency log; with --since also that the log continues the checkpoint that you have from earlier.

Example:
  breakglass export 5f2c9a1e --evidence 5f2c9a1e.bge
  breakglass verify 5f2c9a1e.bge --host-key host-key.pub")]
pub struct ExportArgs {
    /// The session: its id, or an unambiguous end or beginning of it; HOST/ID where several hosts have it.
    session: String,
    /// Where to: a new file. It is there only once it is whole.
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// A checkpoint of the transparency log that you have from earlier.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

/// Fetches the file.
pub async fn run(args: &ExportArgs, config: &Config, options: &Options) -> Result<u8> {
    let log_size = args.since.as_deref().map(size_of).transpose()?.unwrap_or(0);
    let mut desk = Desk::open(config, options).await?;
    let session = desk.session(&args.session).await?;
    let Desk { client, printer } = &mut desk;
    let target = args.evidence.as_path();
    let mut file = NamedTempFile::new_in(folder(target)).with_context(|| cannot_write(target))?;
    let len = fetch(client, &exact(&args.session, &session), log_size, target, file.as_file_mut()).await?;
    file.as_file().sync_all().with_context(|| cannot_write(target))?;
    file.persist_noclobber(target).map_err(|error| error.error).with_context(|| cannot_write(target))?;
    if session.closed_ns == 0 {
        note("The session is still open: the file ends where it stands, and will not verify as a whole.");
    }
    if printer.is_json() {
        let json = serde_json::json!({ "type": "export", "session": session.id, "file": target, "bytes": len });
        printer.line(&json.to_string())?;
    } else {
        printer.line(&format!("{}: {}", target.display(), bytes(len)))?;
    }
    printer.flush()?;
    Ok(0)
}

/// Writes a session's evidence to `file`, which will be or is called `target`; returns its length. The file proves that the log
/// continues its first `log_size` leaves.
pub async fn fetch(client: &mut Client, session: &str, log_size: u64, target: &Path, file: &mut File) -> Result<u64> {
    let request = v1::ExportEvidenceRequest { session: session.to_owned(), log_size };
    let answer = client.query.export_evidence(request).await;
    let mut chunks = answer.map_err(|status| client.explain(&status))?.into_inner();
    let mut len = 0;
    while let Some(chunk) = chunks.message().await.map_err(|status| client.explain(&status))? {
        len += chunk.data.len() as u64;
        file.write_all(&chunk.data).with_context(|| cannot_write(target))?;
    }
    Ok(len)
}

/// Leaves of a checkpoint of a transparency log.
fn size_of(path: &Path) -> Result<u64> {
    let note = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let checkpoint = SignedCheckpoint::parse(&note).with_context(|| path.display().to_string())?;
    Ok(checkpoint.size())
}

fn cannot_write(target: &Path) -> String {
    format!("cannot write {}", target.display())
}

fn folder(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
