//! How attacks came out, kept for the table in `docs/BYPASSES.md`.

use std::{collections::BTreeSet, fs, io::Write, path::PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::case::Outcome;

/// Where a test of the lab leaves what goes back to the host.
const EVIDENCE: &str = "BREAKGLASS_EVIDENCE";

/// Some thousand verdicts, bytes.
const LONG: u64 = 1 << 20;

/// One line of the file.
#[derive(Serialize)]
pub struct Verdict<'a> {
    /// Row of the catalogue.
    pub row: u32,
    /// Name of the attack.
    pub case: &'a str,
    /// `uname -r`.
    pub kernel: &'a str,
    /// Tier of the session.
    pub tier: &'a str,
    /// How it came out.
    pub outcome: Outcome,
    /// The alerts that came meanwhile, the first ones, with their codes.
    pub alerts: &'a BTreeSet<String>,
    /// How long it took to make and to judge.
    pub seconds: f32,
    /// Whether auditd's log has it; nothing where it was not tried.
    pub auditd: Option<bool>,
    /// Whether tlog's file has it.
    pub tlog: Option<bool>,
    /// Whether script's file has it.
    pub script: Option<bool>,
}

/// Appends one.
pub fn keep(verdict: &Verdict<'_>) -> Result<()> {
    let path = file();
    let mut line = serde_json::to_vec(verdict)?;
    line.push(b'\n');
    let file = fs::OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(&line)).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes down at once why a test failed, for a run that may not come to its end.
pub fn tell(test: &str, error: &str) -> Result<()> {
    let path = folder().join("failures.txt");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path);
    let line = format!("{test}: {error}\n");
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Begins a new file where the old one is long: of several verdicts on an attack the last one counts.
pub fn begin() -> Result<()> {
    match fs::metadata(file()) {
        Ok(meta) if meta.len() > LONG => fs::remove_file(file()).context("cannot remove old verdicts"),
        _ => Ok(()),
    }
}

fn folder() -> PathBuf {
    std::env::var_os(EVIDENCE).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

fn file() -> PathBuf {
    folder().join("bypasses.jsonl")
}
