//! A snapshot as data: items, what was cut short, and the stored form.

use std::time::Instant;

use breakglass_api::v1::left_behind::Category;
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::text::{bounded_key, is_below, printable};

/// Largest stored snapshot, decompressed bytes. The per-category limit keeps ours far below.
const STORED_MAX: usize = 64 * 1024 * 1024;

/// Most cuts that are kept one by one; past them, one stands for all.
pub(super) const CUTS_MAX: usize = 256;

/// That one.
pub(super) const CUTS_FULL: &str =
    "more was cut short than can be listed; what is missing was perhaps only not looked at";

/// The fastest level that still halves the size again; snapshots are written once a session.
const ZSTD_LEVEL: i32 = 3;

/// One thing that could be, or become, a door.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Item {
    #[prost(enumeration = "Category", tag = "1")]
    pub(super) category: i32,
    /// A path or a name, at most a little over [`super::text::KEY_MAX`] bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) key: Vec<u8>,
    /// Which one inside `key`; empty for the whole of it. Printable.
    #[prost(string, tag = "3")]
    pub(super) part: String,
    /// What people are shown of it. Printable.
    #[prost(string, repeated, tag = "4")]
    pub(super) facts: Vec<String>,
    /// SHA-256 of what is compared beyond the facts, such as a file's content; empty where there is nothing beyond.
    #[prost(bytes = "vec", tag = "5")]
    pub(super) digest: Vec<u8>,
}

impl Item {
    pub(super) fn new(category: Category, key: &[u8], facts: Vec<String>) -> Self {
        Self { category: category.into(), key: bounded_key(key), part: String::new(), facts, digest: Vec::new() }
    }

    /// Narrows the item to something inside its key.
    pub(super) fn part(self, part: impl Into<String>) -> Self {
        Self { part: part.into(), ..self }
    }

    /// Also compares `pieces`, without keeping them.
    pub(super) fn compares(self, pieces: &[&[u8]]) -> Self {
        Self { digest: digest(pieces), ..self }
    }

    /// Order and identity; items with equal identity are told apart by their order.
    pub(super) fn id(&self) -> (i32, &[u8], &str) {
        (self.category, &self.key, &self.part)
    }
}

/// SHA-256 over pieces that cannot run into each other.
pub(super) fn digest(pieces: &[&[u8]]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for piece in pieces {
        hasher.update((piece.len() as u64).to_le_bytes());
        hasher.update(piece);
    }
    hasher.finalize().to_vec()
}

/// Something that was not, or not wholly, looked at.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Cut {
    /// Unspecified: any.
    #[prost(enumeration = "Category", tag = "1")]
    pub(super) category: i32,
    /// What keys under it begin with; empty: any.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) place: Vec<u8>,
    /// Why, and what that means. Printable.
    #[prost(string, tag = "3")]
    pub(super) why: String,
}

impl Cut {
    /// Whether an item may be missing because of this cut.
    pub(super) fn covers(&self, item: &Item) -> bool {
        (self.category() == Category::Unspecified || self.category == item.category)
            && (self.place.is_empty() || is_below(&item.key, &self.place))
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.place.is_empty() {
            f.write_str(&self.why)
        } else {
            write!(f, "{}: {}", printable(&self.place), self.why)
        }
    }
}

/// What was found on a host at one time.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Snapshot {
    /// Sorted by [`Item::id`].
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<Item>,
    #[prost(message, repeated, tag = "2")]
    pub(super) cuts: Vec<Cut>,
    /// Microseconds.
    #[prost(uint64, tag = "3")]
    pub(super) took_us: u64,
}

/// Why a stored snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not compressed by us, or larger than any of ours.
    #[error("the stored snapshot cannot be decompressed ({0}); what the session left behind cannot be told from it")]
    Compression(#[from] std::io::Error),
    /// Not a snapshot.
    #[error("the stored snapshot is damaged ({0}); what the session left behind cannot be told from it")]
    Damaged(#[from] prost::DecodeError),
}

impl Snapshot {
    /// How many items it has.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What was cut short.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// How long it took, microseconds.
    pub fn took_us(&self) -> u64 {
        self.took_us
    }

    /// Adds what another look found in other categories, such as the walk to the settings.
    pub fn join(mut self, other: Self) -> Self {
        self.items.extend(other.items);
        self.put_in_order();
        self.cuts.extend(other.cuts);
        self.took_us = self.took_us.saturating_add(other.took_us);
        self
    }

    /// Sorts, keeping the order of what has one identity, and drops what was found twice by two ways.
    pub(super) fn put_in_order(&mut self) {
        self.items.sort_by(|a, b| a.id().cmp(&b.id()));
        self.items.dedup();
    }

    /// For the state folder. Keep the SHA-256 of it in the record: the session's root can write to the folder.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SnapshotError> {
        Ok(zstd::bulk::compress(&self.encode_to_vec(), ZSTD_LEVEL)?)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut snapshot = Self::decode(zstd::bulk::decompress(bytes, STORED_MAX)?.as_slice())?;
        // The comparison rests on the order, and the bytes may come from anybody.
        snapshot.put_in_order();
        Ok(snapshot)
    }
}

/// What one step found.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) items: Vec<Item>,
    pub(super) cuts: Vec<Cut>,
    end: Instant,
    room: usize,
}

impl Sink {
    /// The step should stop at `end` and say what it left out; more than `room` items are not kept.
    pub(super) fn new(end: Instant, room: usize) -> Self {
        Self { items: Vec::new(), cuts: Vec::new(), end, room }
    }

    /// Keeps an item; callers with many ask [`Self::over`] first.
    pub(super) fn add(&mut self, item: Item) {
        if self.items.len() < self.room {
            self.items.push(item);
        } else {
            self.say_full(item.category());
        }
    }

    fn say_full(&mut self, category: Category) {
        if !self.cuts.iter().any(|cut| cut.category() == category && cut.place.is_empty()) {
            self.cut(category, b"", format!("more than {} things to compare; the rest was left out", self.room));
        }
    }

    pub(super) fn cut(&mut self, category: Category, place: &[u8], why: impl Into<String>) {
        if self.cuts.len() < CUTS_MAX {
            self.cuts.push(Cut { category: category.into(), place: bounded_key(place), why: why.into() });
        } else if self.cuts.len() == CUTS_MAX {
            self.cuts.push(Cut { why: CUTS_FULL.to_owned(), ..Cut::default() });
        }
    }

    /// Whether the step should stop, for lack of time or room; says so.
    pub(super) fn over(&mut self, category: Category, place: &[u8]) -> bool {
        if self.items.len() >= self.room {
            self.say_full(category);
            return true;
        }
        let late = Instant::now() >= self.end;
        if late {
            self.cut(category, place, "the time was over before all of it was looked at");
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_stored_comes_back() {
        let item = Item::new(Category::Cron, b"/etc/cron.d/\xff", vec!["1 byte".into()]).part("line").compares(&[b"x"]);
        let cut = Cut { category: Category::Cron.into(), place: b"/etc/cron.d".to_vec(), why: "too many".into() };
        let snapshot = Snapshot { items: vec![item], cuts: vec![cut], took_us: 7 };
        assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap(), snapshot);
    }

    #[test]
    fn pieces_do_not_run_into_each_other() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_a_snapshot(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Snapshot::from_bytes(&noise);
            let _ = Snapshot::from_bytes(&zstd::bulk::compress(&noise, 1).unwrap());
        }
    }
}
