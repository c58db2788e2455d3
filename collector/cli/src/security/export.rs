//! `breakglass export`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use breakglass_api::v1;
use clap::Args;
use tempfile::NamedTempFile;

use super::Desk;
use crate::{
    config::Config,
    print::{Options, bytes, note},
};

/// Arguments of `export`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The file holds the session's frames, what the host signed, and the keys to verify it: nothing else is needed, neither the
collector nor this program. It also holds what else the host recorded meanwhile.

Example:
  breakglass export 5f2c9a1e --evidence 5f2c9a1e.bge
  breakglass verify 5f2c9a1e.bge --host-key host-key.pub")]
pub struct ExportArgs {
    /// The session: its id, or an unambiguous end or beginning of it.
    session: String,
    /// Where to: a new file. It is there only once it is whole.
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
}

/// Fetches the file.
pub async fn run(args: &ExportArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let session = desk.session(&args.session).await?;
    let Desk { client, printer } = &mut desk;
    let answer = client.query.export_evidence(v1::ExportEvidenceRequest { session: session.id.clone() }).await;
    let mut chunks = answer.map_err(|status| client.explain(&status))?.into_inner();
    let target = args.evidence.as_path();
    let cannot = || format!("cannot write {}", target.display());
    let mut file = NamedTempFile::new_in(folder(target)).with_context(cannot)?;
    let mut len = 0;
    while let Some(chunk) = chunks.message().await.map_err(|status| client.explain(&status))? {
        len += chunk.data.len() as u64;
        file.write_all(&chunk.data).with_context(cannot)?;
    }
    file.as_file().sync_all().with_context(cannot)?;
    file.persist_noclobber(target).map_err(|error| error.error).with_context(cannot)?;
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

fn folder(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
