//! What the reader of a file trusts: keys that were noted beforehand, by a way that the file's maker has no say in.

use std::{fmt::Display, fs, path::Path, str::FromStr};

use anyhow::{Context, Result, anyhow, bail, ensure};
use breakglass_api::checkpoint::PublicKey;
use breakglass_proof::{
    note::{KeyType, NOTE_MAX, SignedCheckpoint, VerifierKey},
    reviewers::{FILE_MAX, Reviewers},
};

use super::VerifyArgs;
use crate::print::note;

/// Everything that the reader trusts. What is empty or absent leaves a check unproved.
#[derive(Debug, Default)]
pub struct Trust {
    /// Host keys.
    pub hosts: Vec<PublicKey>,
    /// Keys of transparency logs.
    pub logs: Vec<VerifierKey>,
    /// Keys of witnesses.
    pub witnesses: Vec<VerifierKey>,
    /// How many of the witnesses must have cosigned.
    pub quorum: usize,
    /// A checkpoint of the log that the reader has from earlier.
    pub earlier: Option<SignedCheckpoint>,
    /// Who may review.
    pub reviewers: Option<Reviewers>,
}

impl Trust {
    /// From the command line.
    pub fn read(args: &VerifyArgs) -> Result<Self> {
        let hosts = args.host_keys.iter().map(|key| host_key(key)).collect::<Result<_>>()?;
        let log = |key: &String| note_key("--log-key", key, KeyType::Note);
        let logs = args.log_keys.iter().map(log).collect::<Result<Vec<_>>>()?;
        let witness = |key: &String| note_key("--witness-key", key, KeyType::Cosignature);
        let mut witnesses = args.witness_keys.iter().map(witness).collect::<Result<Vec<_>>>()?;
        witnesses.sort_by_key(ToString::to_string);
        witnesses.dedup();
        let quorum = args.quorum.unwrap_or(witnesses.len());
        ensure!(
            quorum <= witnesses.len(),
            "--quorum asks for {quorum} witnesses, and {} keys of witnesses are given with --witness-key",
            witnesses.len()
        );
        let earlier = args.since.as_deref().map(|path| earlier(path, &logs)).transpose()?;
        let reviewers = args.reviewers.as_deref().map(reviewers).transpose()?;
        Ok(Self { hosts, logs, witnesses, quorum, earlier, reviewers })
    }
}

/// A host key from the command line.
pub fn host_key(text: &str) -> Result<PublicKey> {
    let parse = |text: &str| hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    if let Some(key) = parse(text) {
        return Ok(key);
    }
    let content = fs::read_to_string(Path::new(text))
        .map_err(|error| anyhow!("--host-key {text:?} is neither 64 hexadecimal digits nor a file: {error}"))?;
    parse(&content).with_context(|| format!("{text} does not hold 64 hexadecimal digits"))
}

/// A key of a log or a witness from the command line: itself, or the file that holds it.
fn note_key(option: &str, text: &str, kind: KeyType) -> Result<VerifierKey> {
    let parse = |text: &str| VerifierKey::from_str(text.trim());
    let key = match parse(text) {
        Ok(key) => key,
        Err(error) => {
            let wrong =
                |file: &dyn Display| anyhow!("{option} {text:?} is neither a key ({error}) nor a file ({file})");
            let content = fs::read_to_string(Path::new(text)).map_err(|file| wrong(&file))?;
            parse(&content).with_context(|| format!("{option}: {text} does not hold a key"))?
        }
    };
    let (wanted, other) = match kind {
        KeyType::Note => ("a log", "a witness"),
        KeyType::Cosignature => ("a witness", "a log"),
    };
    ensure!(key.kind() == kind, "{option} {key} is the key of {other}; that of {wanted} is wanted");
    Ok(key)
}

fn earlier(path: &Path, logs: &[VerifierKey]) -> Result<SignedCheckpoint> {
    let shown = path.display();
    ensure!(!logs.is_empty(), "--since {shown} needs --log-key, to know that it is a checkpoint of that log");
    let bytes = bounded(path, NOTE_MAX)?;
    let checkpoint = SignedCheckpoint::parse(&bytes).with_context(|| shown.to_string())?;
    let signed = logs.iter().any(|key| checkpoint.is_signed_by(key));
    ensure!(signed, "{shown} is not signed with a key that --log-key names");
    Ok(checkpoint)
}

fn reviewers(path: &Path) -> Result<Reviewers> {
    let bytes = bounded(path, FILE_MAX)?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))?;
    let reviewers = Reviewers::parse(&text);
    for problem in reviewers.problems() {
        note(&format!("{}, line {}: {}; it allows nothing", path.display(), problem.line, problem.message));
    }
    ensure!(!reviewers.is_empty(), "{} lists no key of a reviewer", path.display());
    Ok(reviewers)
}

fn bounded(path: &Path, max: usize) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() > max {
        bail!("{} has {} bytes, at most {max} are read", path.display(), bytes.len());
    }
    Ok(bytes)
}
