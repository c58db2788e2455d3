//! `breakglass verify`: whether an evidence file proves what it says, offline, with public keys only.
//!
//! The rules are in `docs/EVIDENCE.md`, written so that others can check with a program of their own; `tests/verify_evidence.py`
//! is one. This module follows that page step by step: [`verify`] reads the file once and holds one frame in memory,
//! [`session`] looks at what is in the frames, [`numbers`] at whether kernel records are missing, [`logged`] at the transparency log,
//! [`reviewed`] at reviews, [`report`] says it. What it is held against is in [`trust`].

use std::{fs::File, io::BufReader, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::print::{Options, Printer};

pub mod logged;
pub mod numbers;
pub mod report;
pub mod reviewed;
pub mod session;
pub mod trust;
pub mod verify;

use report::{Report, Verdict};
use trust::Trust;
use verify::Verifier;

/// Arguments of `verify`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Works offline: nothing but the file and the host key is needed. The host key is what the host is known by: the content of
/var/lib/breakglass/keys/host-key.pub on the host, noted when it was set up. The collector shows it as well
(`breakglass hosts --json`), but a file from a collector proves nothing against that collector's word for the key.

With --log-key, what the host signed must be in that transparency log; with --witness-key, that many others must have seen the same log;
with --since, it must be the log that you saw before; with --reviewers, one of them must have signed a review. Without them these checks
are not proved, and nothing fails for that. All of these keys are to be noted when things are set up (`breakglass-collector log status`).

Exit codes: 0 verified, 1 broken, 6 sound as far as it goes, but no --host-key was given to hold it against.

Examples:
  breakglass verify evidence.bge --host-key 5f0c…e1
  breakglass verify evidence.bge --host-key host-key.pub --log-key log.pub --witness-key w1.pub --reviewers reviewers
  breakglass verify evidence.bge --host-key host-key.pub --json | jq '.checks[] | select(.state != \"passed\")'")]
pub struct VerifyArgs {
    /// The file, from `breakglass export`.
    file: PathBuf,
    /// A host key to trust, as 64 hexadecimal digits or a file that holds them. May be given several times.
    #[arg(long = "host-key", value_name = "KEY")]
    host_keys: Vec<String>,
    /// The key of the transparency log, `NAME+ID+BASE64` or a file that holds it. May be given several times.
    #[arg(long = "log-key", value_name = "KEY")]
    log_keys: Vec<String>,
    /// The key of a witness of that log, likewise.
    #[arg(long = "witness-key", value_name = "KEY", requires = "log_keys")]
    witness_keys: Vec<String>,
    /// How many of these witnesses must have cosigned. [default: all]
    #[arg(long, value_name = "N", requires = "witness_keys")]
    quorum: Option<usize>,
    /// A checkpoint of the log that you have from earlier: the log must continue it.
    #[arg(long, value_name = "FILE", requires = "log_keys")]
    since: Option<PathBuf>,
    /// Whose reviews count, and with which keys: a file in the form of allowed_signers.
    #[arg(long, value_name = "FILE")]
    reviewers: Option<PathBuf>,
}

/// Verifies and reports.
pub fn run(args: &VerifyArgs, options: &Options) -> Result<u8> {
    let trust = Trust::read(args)?;
    let file = File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let report = Verifier::new(trust).run(BufReader::new(file))?;
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
