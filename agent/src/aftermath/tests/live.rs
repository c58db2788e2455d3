//! This host.

use std::{collections::BTreeSet, path::Path, time::Duration};

use super::*;
use crate::aftermath::{Category, Part};

/// Others may change the host between two looks; this often is enough for one quiet moment.
const ATTEMPTS: u32 = 5;

/// Enough for a large and busy host; the walk of a debug build is several times slower than a real one.
const TIME: Duration = Duration::from_secs(300);

/// Categories that programs change all the time without any session.
const RESTLESS: [Category; 2] = [Category::Socket, Category::Mount];

#[test]
fn two_looks_at_a_quiet_host_are_equal() {
    if !is_root() {
        return;
    }
    let take = || Snapshot::take(Path::new("/"), Limits { time: TIME, ..Limits::default() });
    let settings = Limits { part: Part::Settings, ..Limits::default() };
    println!("{} µs for the settings alone", Snapshot::take(Path::new("/"), settings).took_us());
    let mut before = take();
    assert!(before.items.iter().any(|item| item.category() == Category::PrivilegedFile));
    assert!(before.items.iter().any(|item| item.category() == Category::User && item.part == "root"));
    let mut last = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        println!(
            "{} items, {} µs, {} bytes stored; cuts: {:?}",
            before.len(),
            before.took_us(),
            before.to_bytes().unwrap().len(),
            cuts(&before)
        );
        let after = take();
        last = diff(&before, &after).0.into_iter().filter(is_still).map(|change| change.text).collect();
        if last.is_empty() {
            return;
        }
        before = after;
    }
    panic!("the host never looked the same twice: {last:#?}");
}

/// Whether nobody but a session, or another test, should have changed it.
fn is_still(change: &Change) -> bool {
    !RESTLESS.contains(&change.category()) && !change.key.starts_with(std::env::temp_dir().as_os_str().as_bytes())
}
