//! Too much at once.

use crate::{
    case::{Case, Held},
    record::{Record, acted},
    stage::Deed,
};

pub const CASES: &[Case] = &[
    Case::root(
        4,
        "storm_of_programs",
        r#"
        for n in 1 2; do (i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done) & done
        act
        wait
    "#,
    ),
    Case::terminal(
        4,
        "flood_of_output",
        r#"
        stty -opost
        (yes "$mark" | head -c $flood) & "$attack" act "$file" "$mark"
        wait
    "#,
    )
    .held(bytes_accounted),
];

/// The program is there, and every byte that the client saw is there or counted as missing.
fn bytes_accounted(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    acted(record, deed)?;
    let (shown, missing) = (record.shown().len() as u64, record.missing());
    match (shown >= deed.seen.len() as u64, shown + missing >= deed.seen.len() as u64) {
        (true, _) => Some(Held::Whole),
        (false, true) => Some(Held::Less),
        (false, false) => None,
    }
}
