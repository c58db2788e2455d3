//! The measurements, each against its budget.

#![forbid(unsafe_code)]

mod access;
mod auditd;
mod exec;
mod figure;
mod flood;
mod flow;
mod ingest;
mod outage;
mod overhead;
mod screen;

use std::{process::ExitCode, thread};

use anyhow::Result;
use breakglass_tests::{
    machine::{self, Need},
    undo,
};
use clap::Parser;

use crate::figure::Figure;

/// Measures a collector and an agent on this machine.
#[derive(Parser)]
struct Arguments {
    /// Print one JSON object in place of the table.
    #[arg(long)]
    json: bool,
    /// A tenth of the runs.
    #[arg(long)]
    quick: bool,
    /// Only measurements whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// A measurement: its name, and what it gives for so many percent of the usual runs.
type Measurement = (&'static str, fn(Effort) -> Result<Vec<Figure>>);

const MEASUREMENTS: &[Measurement] = &[
    ("access", access::measure),
    ("exec overhead", overhead::measure),
    ("exec load", exec::load),
    ("exec size", exec::size),
    ("flood", flood::measure),
    ("flow", flow::measure),
    ("ingest", ingest::measure),
    ("outage", outage::measure),
    ("screen", screen::measure),
];

/// How much work to put into a measurement.
#[derive(Clone, Copy)]
pub struct Effort {
    quick: bool,
}

impl Effort {
    /// How many runs to make of what is usually run `usual` times.
    fn runs(self, usual: u64) -> u64 {
        if self.quick { (usual / 10).max(2) } else { usual }
    }
}

fn main() -> ExitCode {
    let result = bench(&Arguments::parse());
    undo::stay_if_interrupted();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    for need in [Need::Root, Need::Ssh, Need::Bpf] {
        if let Some(reason) = need.missing() {
            anyhow::bail!("nothing can be measured here: {reason}");
        }
    }
    undo::sweep()?;
    let mut figures = Vec::new();
    for (name, measure) in MEASUREMENTS {
        if arguments.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        eprintln!("measuring: {name}");
        figures.extend(measure(Effort { quick: arguments.quick })?);
    }
    let about = About {
        kernel: machine::run(std::process::Command::new("uname").args(["-rm"]))?.trim().to_owned(),
        cores: thread::available_parallelism()?.get(),
        optimised: !cfg!(debug_assertions),
    };
    if arguments.json {
        println!("{}", serde_json::json!({ "machine": about, "figures": figures }));
    } else {
        println!(
            "Linux {}, {} cores{}",
            about.kernel,
            about.cores,
            if about.optimised { "" } else { ", NOT OPTIMISED" }
        );
        println!("{}", figure::table(&figures));
    }
    Ok(())
}

/// Where the figures come from.
#[derive(serde::Serialize)]
struct About {
    kernel: String,
    cores: usize,
    optimised: bool,
}
