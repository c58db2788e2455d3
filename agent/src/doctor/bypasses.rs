//! Ways around an audit, and what this version promises about each in which tier.
//!
//! The list is `agent/bypasses.toml`. The tests that perform the bypasses read it through `breakglass-agent bypasses --json`, so what
//! is promised here is what is tested; `docs/BYPASSES.md` is made from it and from the tests' verdicts.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::config::{self, Tier};

const CATALOGUE: &str = include_str!("../../bypasses.toml");

/// What is promised about a way around.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// It works, and the record does not hold it.
    Open,
    /// Something is missing, and the record says what and how much.
    Reported,
    /// What was done is in the record.
    Recorded,
    /// The attempt fails, and there is an alert.
    Refused,
    /// It does not apply in that tier.
    #[serde(rename = "-")]
    None,
}

/// One way around.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its number, never used again.
    pub number: u32,
    /// What is done.
    pub what: String,
    /// What closes it.
    pub by: String,
    /// A command that tries it.
    pub r#try: String,
    /// By the name of the tier.
    pub promise: BTreeMap<String, Promise>,
    /// Why it is open where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The setting without which it is open in every tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_on: Option<Setting>,
}

/// A setting of `agent.toml` that closes a way around.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Setting {
    /// Programs of a session may not use rings.
    #[serde(rename = "kernel.io_uring = \"deny\"")]
    DenyUring,
}

impl Setting {
    fn is_made(self, kernel: &config::Kernel) -> bool {
        match self {
            Self::DenyUring => kernel.io_uring == config::Unrecorded::Deny,
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// In the order of their numbers.
    #[serde(rename(deserialize = "row"))]
    pub rows: Vec<Row>,
}

/// What the tier of this host promises.
#[derive(Clone, Debug, Serialize)]
pub struct Here {
    number: u32,
    what: String,
    promise: Promise,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
}

impl Catalogue {
    /// Reads what was built in.
    pub fn read() -> anyhow::Result<Self> {
        toml::from_str(CATALOGUE).context("the list of bypasses that was built in is not understood")
    }

    /// What applies in a tier and with these settings. Where no program loads everything is open.
    pub fn in_tier(&self, tier: Tier, kernel: &config::Kernel) -> Vec<Here> {
        let promise = |row: &Row| match tier {
            Tier::None => Promise::Open,
            _ if row.rests_on.is_some_and(|setting| !setting.is_made(kernel)) => Promise::Open,
            tier => row.promise.get(&tier.to_string()).copied().unwrap_or(Promise::Open),
        };
        let here = self.rows.iter().map(|row| {
            let promise = promise(row);
            let why = if promise == Promise::Open { row.why.clone() } else { String::new() };
            Here { number: row.number, what: row.what.clone(), promise, why }
        });
        here.filter(|here| here.promise != Promise::None).collect()
    }

    /// For people, with every tier.
    pub fn text(&self) -> String {
        let mut text = String::from("row  full      trace     basic\n");
        for row in &self.rows {
            let word = |tier| row.promise.get(tier).copied().unwrap_or(Promise::Open).word();
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:>3}  {:<9} {:<9} {:<9} {}",
                row.number,
                word("full"),
                word("trace"),
                word("basic"),
                row.what
            );
        }
        text
    }
}

impl Promise {
    fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Reported => "reported",
            Self::Recorded => "recorded",
            Self::Refused => "refused",
            Self::None => "-",
        }
    }
}

/// How many rows are closed, and which are not, for people.
pub fn text(rows: &[Here]) -> String {
    let count = |promise| rows.iter().filter(|row| row.promise == promise).count();
    let mut text = format!(
        "bypasses: {} refused, {} recorded, {} reported, {} open in this tier\n",
        count(Promise::Refused),
        count(Promise::Recorded),
        count(Promise::Reported),
        count(Promise::Open)
    );
    for row in rows.iter().filter(|row| matches!(row.promise, Promise::Open | Promise::Reported)) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<8} {:>3} {}", row.promise.word(), row.number, row.what);
        if !row.why.is_empty() {
            let _ = writeln!(text, "             {}", row.why);
        }
    }
    text
}

/// Whether a row is open.
pub fn any_open(rows: &[Here]) -> bool {
    rows.iter().any(|row| row.promise == Promise::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_promises_something_in_every_tier_and_says_why_it_is_open() {
        let catalogue = Catalogue::read().unwrap();
        for (row, number) in catalogue.rows.iter().zip(1..) {
            assert_eq!(row.number, number);
            assert_eq!(
                row.promise.keys().map(String::as_str).collect::<Vec<_>>(),
                ["basic", "full", "trace"],
                "{number}"
            );
            let open = row.promise.values().any(|promise| *promise == Promise::Open) || row.rests_on.is_some();
            assert_eq!(open, !row.why.is_empty(), "row {number}");
            for text in [&row.what, &row.by, &row.r#try] {
                assert!(!text.is_empty() && !text.contains('\n'), "row {number}: {text}");
            }
        }
    }

    #[test]
    fn without_programs_everything_is_open() {
        let catalogue = Catalogue::read().unwrap();
        let rows = catalogue.in_tier(Tier::None, &config::Kernel::default());
        assert_eq!(rows.len(), catalogue.rows.len());
        assert!(rows.iter().all(|row| row.promise == Promise::Open));
        assert!(any_open(&rows));
        assert!(text(&rows).contains(&format!("{} open", rows.len())));
    }

    #[test]
    fn what_rests_on_a_setting_is_open_without_it() {
        let catalogue = Catalogue::read().unwrap();
        let open = |kernel: &config::Kernel| {
            let rows = catalogue.in_tier(Tier::Full, kernel);
            let open = rows.into_iter().filter(|row| row.promise == Promise::Open);
            open.map(|row| (row.number, row.why)).collect::<Vec<_>>()
        };
        assert!(open(&config::Kernel::default()).is_empty());
        let lax = config::Kernel { io_uring: config::Unrecorded::Record, ..config::Kernel::default() };
        let rows = open(&lax);
        assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [21]);
        assert!(rows[0].1.contains("kernel.io_uring"));
    }
}
