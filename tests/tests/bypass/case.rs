//! What an attack is made of, and how it can come out.

use std::fmt;

use breakglass_tests::machine::Need;
use serde::{Deserialize, Serialize};

use crate::{
    record::{self, Record},
    stage::{Deed, Stage},
};

/// One attack.
pub struct Case {
    /// Row of the catalogue.
    pub row: u32,
    /// Its own name, a word.
    pub name: &'static str,
    /// How it is made.
    pub way: Way,
    /// Whether it did what it was to do.
    pub done: fn(&Deed) -> bool,
    /// What the record has of it.
    pub held: fn(&Record<'_>, &Deed) -> Option<Held>,
    /// What it needs beside what all need.
    pub needs: &'static [Need],
    /// Where it may be tried.
    pub place: Place,
    /// Whether other recorders are tried by it too.
    pub peers: bool,
    /// Whether the agent may need to be woken or started afterwards.
    pub rough: bool,
    /// Who does it for the session, as alerts begin with; none: itself.
    pub helper: Option<&'static str>,
}

/// How an attack is made. Scripts are for `sh`, with the variables of [`Stage::script`] set.
pub enum Way {
    /// By a script, as root by `sudo`, without a terminal.
    Root(&'static str),
    /// By a script, as root by `sudo`, at a terminal.
    Terminal(&'static str),
    /// By a script, as the emergency account itself, without a terminal.
    Operator(&'static str),
    /// By lines typed at a login shell, with `{name}` for the variables.
    Typed(&'static [&'static str]),
    /// In a way of its own.
    Own(fn(&mut Stage, &Case) -> anyhow::Result<Deed>),
}

/// Where an attack may be tried.
pub enum Place {
    /// On any machine.
    Anywhere,
    /// Only where the machine is thrown away; why.
    Lab(&'static str),
}

/// What the record has of a deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// All of it.
    Whole,
    /// Less than all, and how much is missing.
    Less,
    /// An alert that something of it was refused.
    Refused,
    /// Nothing, for nothing was done: the ssh server turned it away by what is said with the operator's key, and told the client. Nobody
    /// else hears of that, so there is no alert.
    TurnedAway,
}

/// How an attack came out, from bad to good.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It worked, and the record does not have it.
    Open,
    /// It worked, and the record says how much of it is missing.
    Reported,
    /// It worked, and the record has it.
    Recorded,
    /// It did not work, and there is an alert.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Open => "open",
            Self::Reported => "reported",
            Self::Recorded => "recorded",
            Self::Refused => "refused",
        })
    }
}

impl Case {
    /// The test's name.
    pub fn full_name(&self) -> String {
        format!("row_{:02}::{}", self.row, self.name)
    }

    /// By a script as root, judged by the program that it runs as `act`.
    pub const fn root(row: u32, name: &'static str, script: &'static str) -> Self {
        Self {
            row,
            name,
            way: Way::Root(script),
            done: Deed::acted,
            held: record::acted,
            needs: &[],
            place: Place::Anywhere,
            peers: false,
            rough: false,
            helper: None,
        }
    }

    /// In a way of its own.
    pub const fn own(row: u32, name: &'static str, way: fn(&mut Stage, &Self) -> anyhow::Result<Deed>) -> Self {
        Self { way: Way::Own(way), ..Self::root(row, name, "") }
    }

    /// By lines typed at a login shell.
    pub const fn typed(row: u32, name: &'static str, lines: &'static [&'static str]) -> Self {
        Self { way: Way::Typed(lines), ..Self::root(row, name, "") }
    }

    /// By a script as root at a terminal, judged by the program that it runs.
    pub const fn terminal(row: u32, name: &'static str, script: &'static str) -> Self {
        Self { way: Way::Terminal(script), ..Self::root(row, name, "") }
    }

    /// By a script as the emergency account, judged by the program that it runs.
    pub const fn operator(row: u32, name: &'static str, script: &'static str) -> Self {
        Self { way: Way::Operator(script), ..Self::root(row, name, "") }
    }

    /// Judged otherwise.
    pub const fn held(self, held: fn(&Record<'_>, &Deed) -> Option<Held>) -> Self {
        Self { held, ..self }
    }

    /// Known to have worked otherwise.
    pub const fn done(self, done: fn(&Deed) -> bool) -> Self {
        Self { done, ..self }
    }

    /// Needs more.
    pub const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    /// Only in the lab.
    pub const fn only_in_lab(self, reason: &'static str) -> Self {
        Self { place: Place::Lab(reason), ..self }
    }

    /// Hurts the agent.
    pub const fn rough(self) -> Self {
        Self { rough: true, ..self }
    }

    /// Asks the init process.
    pub const fn by_init(self) -> Self {
        Self { helper: Some("systemd (pid 1, "), ..self }
    }

    /// Has the kernel start its module loader.
    pub const fn by_module_loader(self) -> Self {
        Self { helper: Some("modprobe (pid "), ..self }
    }

    /// Tried against other recorders too.
    pub const fn peers(self) -> Self {
        Self { peers: true, ..self }
    }
}
