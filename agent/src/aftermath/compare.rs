//! Two snapshots to what is different, bounded and in an order that shows doors first.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use breakglass_api::v1::{
    LeftBehind,
    left_behind::{Change, Kind},
};
use prost::Message as _;

use super::{
    NEVER_COVERED,
    snapshot::{Cut, Item, Snapshot},
    words::{category_word, sentence, severity},
};

/// Most changes of one category that are listed. A flood in one category hides nothing of another, and says how large it is.
const CATEGORY_CHANGES_MAX: usize = 128;

/// Most bytes of one category's changes, so that an event stays far below what a frame may hold. One is always listed.
const CATEGORY_BYTES_MAX: usize = 64 * 1024;

/// Most sentences about what was cut short that go into an event.
const NOT_COVERED_MAX: usize = 64;

/// What is different, doors first, then by category, key and part; and, in sentences, how much of it is not listed.
pub fn diff(before: &Snapshot, after: &Snapshot) -> (Vec<Change>, Vec<String>) {
    let mut pairs = paired(&before.items, &after.items);
    pairs.retain(|pair| pair.differs() && !pair.excused(&after.cuts));
    drop_what_lines_say(&mut pairs);
    let mut changes: Vec<Change> = pairs.iter().map(|pair| pair.change(&before.cuts)).collect();
    changes.sort_by_key(|change| std::cmp::Reverse(change.severity));
    bounded(changes)
}

/// The event for a session's review.
pub fn left_behind(before: &Snapshot, after: &Snapshot) -> LeftBehind {
    let (changes, unlisted) = diff(before, after);
    let mut not_covered = unlisted;
    let cuts = |snapshot: &Snapshot, when: &str| {
        snapshot.cuts.iter().map(|cut| format!("{when} the session: {cut}")).collect::<Vec<_>>()
    };
    not_covered.extend(cuts(before, "before"));
    not_covered.extend(cuts(after, "after"));
    let complete = not_covered.is_empty();
    if not_covered.len() > NOT_COVERED_MAX {
        let more = not_covered.len() - NOT_COVERED_MAX;
        not_covered.truncate(NOT_COVERED_MAX);
        not_covered.push(format!("{more} more places that were cut short are not listed"));
    }
    not_covered.extend(NEVER_COVERED.iter().map(|what| format!("never compared: {what}")));
    LeftBehind { changes, complete, not_covered, took_us: before.took_us.saturating_add(after.took_us) }
}

/// One thing at both times.
struct Pair<'a> {
    before: Option<&'a Item>,
    after: Option<&'a Item>,
}

/// Merges two sorted lists; items with one identity are matched in their order.
fn paired<'a>(before: &'a [Item], after: &'a [Item]) -> Vec<Pair<'a>> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    let mut pairs = Vec::new();
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(b), Some(a)) => b.id().cmp(&a.id()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return pairs,
        };
        let before = if order.is_le() { before.next() } else { None };
        let after = if order.is_ge() { after.next() } else { None };
        pairs.push(Pair { before, after });
    }
}

impl Pair<'_> {
    fn item(&self) -> Option<&Item> {
        self.after.or(self.before)
    }

    fn kind(&self) -> Kind {
        match (self.before, self.after) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
            _ => Kind::Changed,
        }
    }

    fn differs(&self) -> bool {
        self.before.map(|item| (&item.facts, &item.digest)) != self.after.map(|item| (&item.facts, &item.digest))
    }

    /// Whether it is gone only because the second look did not get that far.
    fn excused(&self, cuts: &[Cut]) -> bool {
        self.kind() == Kind::Removed && self.before.is_some_and(|item| cuts.iter().any(|cut| cut.covers(item)))
    }

    /// Whether the rights and the target of a file are what they were.
    fn same_facts(&self) -> bool {
        match (self.before, self.after) {
            (Some(before), Some(after)) => before.facts == after.facts,
            _ => true,
        }
    }

    fn change(&self, cuts_before: &[Cut]) -> Change {
        let kind = self.kind();
        let facts = |item: Option<&Item>| item.map(|item| item.facts.join(", ")).unwrap_or_default();
        let Some(item) = self.item() else { return Change::default() };
        let mut text = sentence(kind, item, self.before, self.after);
        if kind == Kind::Added && cuts_before.iter().any(|cut| cut.covers(item)) {
            text.push_str("; it may have been there before, where the first look was cut short");
        }
        Change {
            category: item.category,
            key: item.key.clone(),
            item: item.part.clone(),
            kind: kind.into(),
            severity: severity(kind, item).into(),
            before: facts(self.before),
            after: facts(self.after),
            text,
        }
    }
}

/// A file that is listed line by line, or entry by entry, need not be listed as changed as a whole too, unless its rights changed.
fn drop_what_lines_say(pairs: &mut Vec<Pair<'_>>) {
    let mut lines: BTreeSet<(i32, Vec<u8>)> = BTreeSet::new();
    for item in pairs.iter().filter_map(Pair::item).filter(|item| !item.part.is_empty()) {
        lines.insert((item.category, item.key.clone()));
    }
    pairs.retain(|pair| {
        pair.item().is_none_or(|item| {
            !item.part.is_empty() || !pair.same_facts() || !lines.contains(&(item.category, item.key.clone()))
        })
    });
}

/// Keeps to the limits of each category.
fn bounded(changes: Vec<Change>) -> (Vec<Change>, Vec<String>) {
    #[derive(Default)]
    struct Used {
        listed: usize,
        bytes: usize,
        left_out: usize,
    }
    let mut used: BTreeMap<i32, Used> = BTreeMap::new();
    let mut kept = Vec::new();
    for change in changes {
        let used = used.entry(change.category).or_default();
        let bytes = change.encoded_len();
        if used.listed > 0 && (used.listed >= CATEGORY_CHANGES_MAX || used.bytes + bytes > CATEGORY_BYTES_MAX) {
            used.left_out += 1;
            continue;
        }
        used.listed += 1;
        used.bytes += bytes;
        kept.push(change);
    }
    let sentence = |(category, used): (&i32, &Used)| {
        let word = category_word((*category).try_into().unwrap_or_default());
        format!("{word}: {} more changes than the {} listed", used.left_out, used.listed)
    };
    let unlisted = used.iter().filter(|(_, used)| used.left_out > 0).map(sentence).collect();
    (kept, unlisted)
}
