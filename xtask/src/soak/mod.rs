//! `cargo xtask soak`: hunts that are too long for every change. Each looks for one kind of fault until its time is up and fails with
//! what it found. A hunt is one line in [`HUNTS`].

mod crash;
mod flood;
mod fuzz;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, builder::PossibleValuesParser};

use crate::packages;

const EXAMPLES: &str = "\
Examples:
  cargo xtask soak                          every hunt, one after the other: a night
  cargo xtask soak fuzz                     every fuzz target, ten minutes each
  cargo xtask soak fuzz --minutes 1 sshsig  targets with \"sshsig\" in their names, a minute each
  cargo xtask soak crash                    agent and collector killed 500 times under load
  cargo xtask soak flood                    half a minute of programs and output from every processor

See docs/TESTING.md.";

/// Arguments of `soak`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SoakArgs {
    /// Which hunt; all where left out
    #[arg(value_parser = PossibleValuesParser::new(HUNTS.iter().map(|hunt| hunt.name)))]
    hunt: Option<String>,
    /// Only the hunt's parts whose name contains this
    part: Option<String>,
    /// How long each part takes
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<u64>,
    /// fuzz: take into the committed corpus what reached new code
    #[arg(long)]
    keep: bool,
}

/// What a hunt is asked for.
#[derive(Clone, Copy, Debug)]
struct Wish<'a> {
    /// Only parts whose name contains this; empty: all.
    part: &'a str,
    /// How long each part takes; absent: what the hunt thinks right.
    time: Option<Duration>,
    /// Keep what helps the next hunt in the repository.
    keep: bool,
}

/// One kind of fault to look for.
struct Hunt {
    name: &'static str,
    about: &'static str,
    /// Looks for it; an error says what was found, and how to see it again.
    run: fn(&Wish<'_>) -> Result<()>,
}

/// Every hunt.
const HUNTS: &[Hunt] = &[
    Hunt { name: "fuzz", about: "hostile input for every reader, guided by coverage", run: fuzz::run },
    Hunt { name: "crash", about: "agent and collector killed at random moments under load", run: crash::run },
    Hunt { name: "flood", about: "programs and output from every processor against the record", run: flood::run },
];

/// Runs the hunts; fails if any found something.
pub fn run(args: &SoakArgs) -> Result<()> {
    packages::ensure_installed()?;
    let wish = Wish {
        part: args.part.as_deref().unwrap_or_default(),
        time: args.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        keep: args.keep,
    };
    let chosen = HUNTS.iter().filter(|hunt| args.hunt.as_ref().is_none_or(|name| name == hunt.name));
    let mut found = Vec::new();
    for hunt in chosen {
        println!("==> {}: {}", hunt.name, hunt.about);
        let start = Instant::now();
        let result = (hunt.run)(&wish);
        let took = humantime::format_duration(Duration::from_secs(start.elapsed().as_secs()));
        match result {
            Ok(()) => println!("==> {}: nothing found ({took})", hunt.name),
            Err(error) => {
                println!("==> {}: FOUND SOMETHING ({took})\n{error:#}", hunt.name);
                found.push(hunt.name);
            }
        }
    }
    if !found.is_empty() {
        bail!("something was found: {}", found.join(", "));
    }
    Ok(())
}
