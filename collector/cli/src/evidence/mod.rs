//! `breakglass verify`: whether an evidence file proves what it says, offline, with public keys only.
//!
//! The rules are in `docs/EVIDENCE.md`, written so that others can check with a program of their own; `tests/verify_evidence.py`
//! is one. This module follows that page step by step: [`verify`] reads the file once and holds one frame in memory,
//! [`session`] looks at what is in the frames, [`numbers`] at whether kernel records are missing, [`report`] says it.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::print::{Options, Printer};

pub mod numbers;
pub mod report;
pub mod session;
pub mod verify;

use report::{Report, Verdict};
use verify::Verifier;

/// Arguments of `verify`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Works offline: nothing but the file and the host key is needed. The host key is what the host is known by: the content of
/var/lib/breakglass/keys/host-key.pub on the host, noted when it was set up. The collector shows it as well
(`breakglass hosts --json`), but a file from a collector proves nothing against that collector's word for the key.

Exit codes: 0 verified, 1 broken, 6 sound as far as it goes, but no --host-key was given to hold it against.

Examples:
  breakglass verify evidence.bge --host-key 5f0c…e1
  breakglass verify evidence.bge --host-key host-key.pub --json | jq '.checks[] | select(.state != \"passed\")'")]
pub struct VerifyArgs {
    /// The file, from `breakglass export`.
    file: PathBuf,
    /// A host key to trust, as 64 hexadecimal digits or a file that holds them. May be given several times.
    #[arg(long = "host-key", value_name = "KEY")]
    host_keys: Vec<String>,
}

/// Verifies and reports.
pub fn run(args: &VerifyArgs, options: &Options) -> Result<u8> {
    let trusted = args.host_keys.iter().map(|key| host_key(key)).collect::<Result<Vec<_>>>()?;
    let file = File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let report = Verifier::new(trusted).run(BufReader::new(file))?;
    let mut printer = Printer::new(options);
    report::print(&mut printer, &report)?;
    printer.flush()?;
    Ok(exit_code(&report))
}

fn exit_code(report: &Report) -> u8 {
    match report.verdict() {
        Verdict::Verified => 0,
        Verdict::Broken => 1,
        Verdict::Unanchored => 6,
    }
}

/// A key from the command line.
fn host_key(text: &str) -> Result<[u8; 32]> {
    let parse = |text: &str| hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    if let Some(key) = parse(text) {
        return Ok(key);
    }
    let content = std::fs::read_to_string(Path::new(text))
        .map_err(|error| anyhow!("--host-key {text:?} is neither 64 hexadecimal digits nor a file: {error}"))?;
    parse(&content).with_context(|| format!("{text} does not hold 64 hexadecimal digits"))
}
