//! The attacks, by subject.

mod after;
mod agent;
mod elsewhere;
mod files;
mod flood;
mod programs;
mod terminals;

use crate::case::Case;

/// All of them, in the order in which they are made: first those that leave everything as it was, at the end those that stop the
/// agent or end the session.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [programs::CASES, terminals::CASES, files::CASES, elsewhere::CASES, flood::CASES, agent::CASES, after::CASES]
        .into_iter()
        .flatten()
}
