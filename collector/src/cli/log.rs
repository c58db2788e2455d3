//! `breakglass-collector log`: reads the log's files, beside a running collector or without one.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;
use signed_note::Verifier;

use super::Folder;
use crate::settings::Layout;
use crate::tlog::disk::{Disk, OsDisk};
use crate::tlog::log::Paths;
use crate::tlog::note::{KeyType, NOTE_MAX, SignedCheckpoint};
use crate::tlog::publish::{Status, WitnessStatus};
use crate::tlog::read_key;
use crate::tlog::tree::Tree;

/// Largest `status.json` that is read, bytes; it has a few lines for each witness.
const STATUS_MAX: usize = 256 * 1024;

#[derive(Debug, Subcommand)]
pub enum Log {
    /// Say what the log is called, how large it is, and who has cosigned it.
    #[command(after_help = "Example:\n  breakglass-collector log status --dir /var/lib/breakglass-collector")]
    Status(StatusArguments),
    /// Print a proof that can be checked offline with public keys alone.
    #[command(
        after_help = "Of a leaf: an inclusion proof in the format of c2sp.org/tlog-proof, with the published checkpoint.\n\
        Of an older size: the consistency proof from it to the published checkpoint, as hashes in base 64.\n\n\
        Examples:\n  breakglass-collector log proof --dir /var/lib/breakglass-collector --leaf 17\n  \
        breakglass-collector log proof --dir /var/lib/breakglass-collector --from-size 12"
    )]
    Proof(ProofArguments),
    /// Read a whole log, anybody's, and say which sessions there were and whether anything that a host signed is missing.
    Audit(super::audit::Audit),
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    folder: Folder,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ProofArguments {
    #[command(flatten)]
    folder: Folder,
    /// Index of the leaf to prove.
    #[arg(long, value_name = "INDEX", required_unless_present = "from_size")]
    leaf: Option<u64>,
    /// Size of an earlier checkpoint that the published one continues.
    #[arg(long, value_name = "SIZE", conflicts_with = "leaf")]
    from_size: Option<u64>,
}

impl Log {
    /// Runs it: 3 where an audit found something.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Status(arguments) => status(arguments)?,
            Self::Proof(arguments) => proof(arguments)?,
            Self::Audit(audit) => {
                if !super::runtime()?.block_on(audit.run())? {
                    return Ok(ExitCode::from(3));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What `status` prints.
#[derive(Debug, Serialize)]
struct Report {
    origin: String,
    key: String,
    /// Leaves that were appended, as the running collector last wrote down; those after `published.size` are not public.
    leaves: u64,
    published: Option<Published>,
    quorum: usize,
    fault: Option<String>,
    witnesses: Vec<WitnessStatus>,
}

#[derive(Debug, Serialize)]
struct Published {
    size: u64,
    root: String,
    /// The configured witnesses whose cosignature is on it and good.
    cosigned_by: Vec<String>,
}

/// The published checkpoint, verified with the log's key.
fn published(layout: &Layout) -> anyhow::Result<Option<SignedCheckpoint>> {
    let key = read_key(&layout.log_key(), KeyType::Note)?;
    let path = Paths::new(&layout.log()).checkpoint();
    let Some(note) = OsDisk.read(&path, NOTE_MAX).with_context(|| format!("cannot read {}", path.display()))? else {
        return Ok(None);
    };
    let checkpoint = SignedCheckpoint::parse(&note).with_context(|| path.display().to_string())?;
    checkpoint.verify(std::slice::from_ref(key.public())).with_context(|| path.display().to_string())?;
    Ok(Some(checkpoint))
}

fn status(arguments: &StatusArguments) -> anyhow::Result<()> {
    let layout = Layout::new(&arguments.folder.dir);
    let settings = layout.settings()?.log;
    let key = read_key(&layout.log_key(), KeyType::Note)?;
    let path = Paths::new(&layout.log()).status();
    let known = OsDisk.read(&path, STATUS_MAX).with_context(|| format!("cannot read {}", path.display()))?;
    // A file of another version says nothing that could not be missed.
    let known: Status = known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let witnesses = settings.witnesses()?;
    let published = published(&layout)?.map(|checkpoint| Published {
        size: checkpoint.size(),
        root: checkpoint.root().to_string(),
        cosigned_by: witnesses
            .iter()
            .filter(|witness| checkpoint.verify(std::slice::from_ref(witness.key())).is_ok())
            .map(|witness| witness.key().name().to_owned())
            .collect(),
    });
    let report = Report {
        origin: key.public().name().to_owned(),
        key: key.public().to_string(),
        leaves: known.leaves,
        published,
        quorum: settings.quorum,
        fault: known.fault,
        witnesses: known.witnesses,
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.text()),
    }
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        let mut lines = vec![format!("origin     {}", self.origin), format!("key        {}", self.key)];
        lines.push(match &self.published {
            Some(published) => format!(
                "published  {} of {} leaves, root {}",
                published.size,
                self.leaves.max(published.size),
                published.root
            ),
            None => format!("published  nothing yet of {} leaves", self.leaves),
        });
        let cosigners = self.published.as_ref().map(|published| published.cosigned_by.as_slice()).unwrap_or_default();
        lines.push(format!(
            "cosigned   {} of {} witnesses, {} needed{}{}",
            cosigners.len(),
            self.witnesses.len(),
            self.quorum,
            if cosigners.is_empty() { "" } else { ": " },
            cosigners.join(", ")
        ));
        for witness in &self.witnesses {
            let WitnessStatus { name, cosigned_size, failures, error } = witness;
            lines.push(match error {
                Some(error) => format!("witness    {name} up to {cosigned_size}; failed {failures} times: {error}"),
                None => format!("witness    {name} up to {cosigned_size}"),
            });
        }
        if let Some(fault) = &self.fault {
            lines.push(format!("FAULT      {fault}"));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn proof(arguments: &ProofArguments) -> anyhow::Result<()> {
    let layout = Layout::new(&arguments.folder.dir);
    layout.settings()?;
    let checkpoint = published(&layout)?.context("the log has not published a checkpoint yet")?;
    let tree = Tree::new(Arc::new(OsDisk), &Paths::new(&layout.log()).public(), checkpoint.size());
    match (arguments.leaf, arguments.from_size) {
        (Some(index), _) => {
            let proof = tree.inclusion_proof(index, checkpoint.size())?;
            print!("c2sp.org/tlog-proof@v1\nindex {index}\n");
            proof.iter().for_each(|hash| println!("{hash}"));
            print!("\n{}", String::from_utf8_lossy(&checkpoint.to_bytes()));
        }
        (None, from) => {
            let proof = tree.consistency_proof(from.unwrap_or(0), checkpoint.size())?;
            proof.iter().for_each(|hash| println!("{hash}"));
        }
    }
    Ok(())
}
