//! Reviews: who has signed what of which session, and which sessions still wait for one.
//!
//! A session waits from its closing on, until somebody other than its operator has signed a review that covers everything recorded of it.
//! What is recorded of it later (what it left behind is found after the closing) makes it wait again. Reviews are kept as they were
//! signed, in a database of their own: like frames they cannot be derived from anything.
//!
//! | module | what it does |
//! |---|---|
//! | [`book`] | keeps reviews |
//! | [`judge`] | whether a review counts: a pure decision |
//! | [`queue`] | which sessions wait, and since when too long |

pub mod book;
pub mod judge;
pub mod queue;

use serde::{Deserialize, Serialize};

/// `[review]` in `collector.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReviewSettings {
    /// Hours after its closing by which a session should be reviewed.
    pub due_hours: u32,
}

impl Default for ReviewSettings {
    fn default() -> Self {
        Self { due_hours: 72 }
    }
}
