//! `breakglass-collector log audit`: reads a whole log, the way somebody does who does not trust who runs it.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use breakglass_proof::history::{History, Host, Seen};
use clap::Args;
use hyper::Uri;
use serde_json::json;
use uuid::Uuid;

use crate::index::hex;
use crate::tlog::client;
use crate::tlog::note::{KeyType, NOTE_MAX, SignedCheckpoint, VerifierKey};
use crate::tlog::remote::Remote;

#[derive(Debug, Args)]
#[command(after_help = "\
Every leaf is read, so this needs no proofs: the leaves must give the root of the checkpoint, and of the one that you saved last time. Then
each host's statements are followed. What a host signed cannot be left out of the log without a hole in its chain of keys or an opening without its
mark, unless it is the last; how long ago that was is told for each host.

Ends with 0 if nothing is wrong, 1 if the log is not what it says, 3 if something of a host is missing or forged.

Examples:
  breakglass-collector log audit --url https://collector.example.org/log --log-key log.pub --save last.note
  breakglass-collector log audit --files /srv/copy --log-key log.pub --since last.note --witness-key w1.pub --json")]
pub struct Audit {
    /// Where the log is served.
    #[arg(long, value_name = "URL", required_unless_present = "files", conflicts_with = "files")]
    url: Option<Uri>,
    /// A folder with a copy of what is served: `checkpoint` and `tile/`.
    #[arg(long, value_name = "FOLDER")]
    files: Option<PathBuf>,
    /// The log's key, NAME+ID+BASE64 or a file that holds it.
    #[arg(long, value_name = "KEY")]
    log_key: String,
    /// The key of a witness that must have cosigned the checkpoint; may be given more than once.
    #[arg(long = "witness-key", value_name = "KEY")]
    witness_keys: Vec<String>,
    /// A checkpoint from an earlier visit, which the log must continue.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Keep the checkpoint here if all is well, for the next visit.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Audit {
    /// Reads and tells; whether nothing of any host is missing or forged.
    pub async fn run(&self) -> anyhow::Result<bool> {
        let log_key = key("--log-key", &self.log_key, KeyType::Note)?;
        let remote = self.remote()?;
        let note = remote.checkpoint().await?;
        let checkpoint = signed(&note, &log_key).context("the checkpoint that is served")?;
        for text in &self.witness_keys {
            let witness = key("--witness-key", text, KeyType::Cosignature)?;
            let cosigned = checkpoint.verify(std::slice::from_ref(&witness)).is_ok();
            ensure!(cosigned, "{} has not cosigned the checkpoint of {} leaves", witness.holder(), checkpoint.size());
        }
        let earlier = self.since.as_deref().map(|path| {
            let note = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            signed(&note, &log_key).with_context(|| path.display().to_string())
        });
        let earlier = earlier.transpose()?;
        if let Some(earlier) = &earlier {
            let (then, now) = (earlier.size(), checkpoint.size());
            ensure!(
                then <= now,
                "the log had {then} leaves when you looked last, and has {now} now: it was rolled back"
            );
        }
        let mut history = History::default();
        remote.leaves(&checkpoint, earlier.as_ref(), |leaf, content| history.take(leaf, content)).await?;
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&report(&checkpoint, &history))?),
            false => print!("{}", text(&checkpoint, &history)),
        }
        if let Some(path) = self.save.as_deref().filter(|_| history.is_sound()) {
            std::fs::write(path, &note).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(history.is_sound())
    }

    fn remote(&self) -> anyhow::Result<Remote> {
        match (&self.url, &self.files) {
            (Some(url), _) => Ok(Remote::Web(Box::new(client::http().context("cannot set up https")?), url.clone())),
            (None, Some(folder)) => Ok(Remote::Files(folder.clone())),
            (None, None) => anyhow::bail!("say where the log is: --url or --files"),
        }
    }
}

/// A key from the command line: itself, or the file that holds it.
fn key(option: &str, text: &str, kind: KeyType) -> anyhow::Result<VerifierKey> {
    let parsed = text.trim().parse::<VerifierKey>();
    let parsed = match (parsed, std::fs::read_to_string(text)) {
        (Ok(key), _) => key,
        (Err(_), Ok(content)) => content.trim().parse().with_context(|| format!("{option} {text}"))?,
        (Err(error), Err(_)) => return Err(error).with_context(|| format!("{option} {text:?}")),
    };
    ensure!(parsed.kind() == kind, "{option} {parsed} is a key of the wrong type");
    Ok(parsed)
}

fn signed(note: &[u8], log_key: &VerifierKey) -> anyhow::Result<SignedCheckpoint> {
    ensure!(note.len() <= NOTE_MAX, "it is longer than {NOTE_MAX} bytes");
    let checkpoint = SignedCheckpoint::parse(note)?;
    ensure!(checkpoint.is_signed_by(log_key), "it is not signed with the key of {}", log_key.holder());
    Ok(checkpoint)
}

fn seen(id: &[u8; 16], seen: &Seen) -> serde_json::Value {
    let mark = |mark: Option<(u64, i64)>| mark.map(|(leaf, wall_ns)| json!({ "leaf": leaf, "wall_ns": wall_ns }));
    json!({ "session": Uuid::from_bytes(*id), "opened": mark(seen.opened), "closed": mark(seen.closed) })
}

fn report(checkpoint: &SignedCheckpoint, history: &History) -> serde_json::Value {
    let host = |(key, host): (&[u8; 32], &Host)| {
        let finding = |finding: &breakglass_proof::history::Finding| json!({ "leaf": finding.leaf, "code": finding.code, "message": finding.message });
        json!({
            "host_key": hex(key),
            "host_ids": host.ids.iter().map(|id| Uuid::from_bytes(*id)).collect::<Vec<_>>(),
            "statements": host.statements,
            "last_ns": host.last_ns,
            "succeeded_by": host.succeeded_by.map(|key| hex(&key)),
            "sessions": host.sessions.iter().map(|(id, session)| seen(id, session)).collect::<Vec<_>>(),
            "findings": host.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    };
    json!({
        "origin": checkpoint.origin(),
        "size": checkpoint.size(),
        "root": checkpoint.root().to_string(),
        "sound": history.is_sound(),
        "foreign": history.foreign,
        "hosts": history.hosts.iter().map(host).collect::<Vec<_>>(),
    })
}

fn text(checkpoint: &SignedCheckpoint, history: &History) -> String {
    let mut lines = vec![format!("{}: {} leaves, all there", checkpoint.origin(), checkpoint.size())];
    if history.foreign > 0 {
        lines.push(format!("{} of them are no host's word", history.foreign));
    }
    let day = |ns: i64| {
        time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).map_or_else(|_| ns.to_string(), second)
    };
    for (key, host) in &history.hosts {
        let ids: Vec<String> = host.ids.iter().map(|id| Uuid::from_bytes(*id).to_string()).collect();
        let (statements, last) = (host.statements, day(host.last_ns));
        lines.push(format!(
            "\nhost {} (key {})\n  {statements} statements, the last on {last}",
            ids.join(", "),
            hex(key)
        ));
        for (id, session) in &host.sessions {
            let at = |mark: Option<(u64, i64)>| mark.map_or_else(|| "NOT IN THE LOG".to_owned(), |(_, ns)| day(ns));
            let id = Uuid::from_bytes(*id);
            lines.push(format!("  session {id}  opened {}  closed {}", at(session.opened), at(session.closed)));
        }
        for finding in &host.findings {
            lines.push(format!("  MISSING OR FORGED at leaf {}: {} ({})", finding.leaf, finding.message, finding.code));
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// To the second, in UTC.
fn second(time: time::OffsetDateTime) -> String {
    let (date, time) = (time.date(), time.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}
