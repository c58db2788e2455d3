//! The agent's own list of ways around it, and what it promises about each.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use breakglass_tests::{binaries::Binaries, machine};
use serde::Deserialize;

use crate::{case::Outcome, cases};

/// What `breakglass-agent bypasses --json` prints, as far as it is used.
#[derive(Deserialize)]
pub struct Catalogue {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    number: u32,
    promise: BTreeMap<String, String>,
}

impl Catalogue {
    /// Asks the agent.
    pub fn ask(binaries: &Binaries) -> Result<Self> {
        let printed = machine::run(Command::new(&binaries.agent).args(["bypasses", "--json"]))?;
        serde_json::from_str(&printed).with_context(|| format!("not understood: {printed}"))
    }

    /// What is promised about a row in a tier; nothing where it does not apply there.
    pub fn promise(&self, row: u32, tier: &str) -> Result<Option<Outcome>> {
        let found = self.rows.iter().find(|found| found.number == row).with_context(|| format!("no row {row}"))?;
        let word = found.promise.get(tier).with_context(|| format!("row {row} promises nothing for tier {tier}"))?;
        if word == "-" {
            return Ok(None);
        }
        let outcome = serde_json::from_value(word.as_str().into());
        outcome.with_context(|| format!("row {row} promises {word:?}")).map(Some)
    }
}

/// The catalogue and the attacks have the same rows.
pub fn every_row_is_attacked() -> Result<()> {
    let rows: BTreeSet<u32> = Catalogue::ask(&Binaries::find()?)?.rows.iter().map(|row| row.number).collect();
    let attacked: BTreeSet<u32> = cases::all().map(|case| case.row).collect();
    ensure!(rows == attacked, "only in one of the two: {:?}", rows.symmetric_difference(&attacked).collect::<Vec<_>>());
    Ok(())
}
