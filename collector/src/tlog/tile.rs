//! Names and contents of the files of a tiled log, after C2SP tlog-tiles.

use std::fmt;

/// Hashes in a full tile, and leaves in a full bundle.
pub const TILE_WIDTH: u64 = 256;
/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// Bytes of a full tile of hashes.
pub const TILE_BYTES: usize = TILE_WIDTH as usize * HASH_BYTES;
/// Largest leaf, bytes. The format would take 65,535. Whoever appends leaves has to stay below it; a full bundle, which is read and
/// sent whole, has 12 MiB at most, and 80 KiB where leaves have 300 bytes.
pub const LEAF_MAX: usize = 48 * 1024 + 512;
/// Bytes of the largest bundle: every leaf has two bytes of length before it.
pub const BUNDLE_MAX: usize = TILE_WIDTH as usize * (2 + LEAF_MAX);
/// Levels that a tree of fewer than 2^64 leaves can have.
const LEVELS: u8 = 8;
/// Longest path that is looked at: seven elements of a 64-bit number, level and width fit in 48 bytes.
const PATH_MAX: usize = 64;

/// What a file of the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Hashes of a level; level 0 are the leaves' hashes.
    Hashes(u8),
    /// The leaves themselves.
    Entries,
}

/// The place of a tile or a bundle of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePath {
    /// What it holds.
    pub content: Content,
    /// Which one of its level.
    pub index: u64,
    /// How many hashes or entries, 1 to 256.
    pub width: u16,
}

impl TilePath {
    /// The tile that holds hash or leaf `n` of a level of `count` hashes, in its width as of then; `None` if `n` is not
    /// in it.
    pub fn holding(content: Content, n: u64, count: u64) -> Option<Self> {
        let index = n / TILE_WIDTH;
        let width = count.saturating_sub(index * TILE_WIDTH).min(TILE_WIDTH);
        (n < count).then_some(Self { content, index, width: u16::try_from(width).unwrap_or(u16::MAX) })
    }

    /// Whether it will never change.
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == TILE_WIDTH
    }

    /// The same tile once it is full.
    pub fn full(self) -> Self {
        Self { width: TILE_WIDTH as u16, ..self }
    }

    /// The folder of the partial states of this tile, relative to the log.
    pub fn partial_dir(self) -> String {
        format!("{}.p", self.full())
    }

    /// Parses the path of a request, without the leading slash. Only the one canonical spelling of a tile is taken, so
    /// that whatever is accepted is below `tile/` and names one file.
    pub fn parse(path: &str) -> Option<Self> {
        if path.len() > PATH_MAX {
            return None;
        }
        let mut parts = path.strip_prefix("tile/")?.split('/');
        let content = match parts.next()? {
            "entries" => Content::Entries,
            level => Content::Hashes(level.parse().ok().filter(|level| *level < LEVELS)?),
        };
        let mut index: u64 = 0;
        let mut width = TILE_WIDTH as u16;
        while let Some(part) = parts.next() {
            let (digits, more) = match (part.strip_prefix('x'), part.strip_suffix(".p")) {
                (Some(digits), _) => (digits, true),
                (None, Some(digits)) => {
                    width = parts.next()?.parse().ok().filter(|width| (1..TILE_WIDTH as u16).contains(width))?;
                    (digits, false)
                }
                (None, None) => (part, false),
            };
            let digits: u64 = digits.parse().ok().filter(|digits| *digits < 1000)?;
            index = index.checked_mul(1000)?.checked_add(digits)?;
            if !more && parts.next().is_some() {
                return None;
            }
        }
        let parsed = Self { content, index, width };
        (parsed.to_string() == path).then_some(parsed)
    }
}

impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content {
            Content::Hashes(level) => write!(f, "tile/{level}/")?,
            Content::Entries => f.write_str("tile/entries/")?,
        }
        // The largest u64 has seven groups of three digits.
        let groups = (1..7).rev().map(|power| self.index / 1000_u64.pow(power)).filter(|rest| *rest > 0);
        for rest in groups {
            write!(f, "x{:03}/", rest % 1000)?;
        }
        write!(f, "{:03}", self.index % 1000)?;
        match self.is_full() {
            true => Ok(()),
            false => write!(f, ".p/{}", self.width),
        }
    }
}

/// Adds a leaf to a bundle. The caller has made sure that it is at most [`LEAF_MAX`].
pub fn push_entry(bundle: &mut Vec<u8>, leaf: &[u8]) {
    let len = u16::try_from(leaf.len()).unwrap_or(u16::MAX);
    bundle.extend_from_slice(&len.to_be_bytes());
    bundle.extend_from_slice(leaf);
}

/// The leaves of a bundle; `None` where it ends in the middle of one.
pub fn entries(mut bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut leaves = Vec::new();
    while !bundle.is_empty() {
        let (len, rest) = bundle.split_first_chunk::<2>()?;
        let (leaf, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        leaves.push(leaf);
        bundle = rest;
    }
    Some(leaves)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(content: Content, index: u64, width: u16) -> String {
        TilePath { content, index, width }.to_string()
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(path(Content::Hashes(0), 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(path(Content::Hashes(2), 0, 1), "tile/2/000.p/1");
        assert_eq!(path(Content::Entries, 273, 112), "tile/entries/273.p/112");
        assert_eq!(path(Content::Entries, 1000, 256), "tile/entries/x001/000");
        let last = TilePath { content: Content::Hashes(7), index: u64::MAX, width: 255 };
        assert_eq!(TilePath::parse(&last.to_string()), Some(last));
        assert_eq!(last.partial_dir(), "tile/7/x018/x446/x744/x073/x709/x551/615.p");
    }

    #[test]
    fn other_spellings_are_refused() {
        for path in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "tile/0/1",
            "tile/0/0001",
            "tile/0/x000/001",
            "tile/8/000",
            "tile/00/000",
            "tile/+0/000",
            "tile/0/+01",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/000.p",
            "tile/0/000.p/1/2",
            "tile/0/000/001",
            "tile/0/x001",
            "tile/0/x001.p/1",
            "tile/entries/../../x",
            "tile/0/..",
            "tile/0/000.tmp",
            "/tile/0/000",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/data/000",
        ] {
            assert_eq!(TilePath::parse(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_path_names_one_tile(index: u64, width in 1_u16..=256, level in 0_u8..8, entries: bool) {
            let content = if entries { Content::Entries } else { Content::Hashes(level) };
            let tile = TilePath { content, index, width };
            prop_assert_eq!(TilePath::parse(&tile.to_string()), Some(tile));
        }

        #[test]
        fn what_is_accepted_is_canonical(path in "tile/(entries|[0-9]{1,3})(/x?[0-9./p]{1,8}){1,4}") {
            if let Some(tile) = TilePath::parse(&path) {
                prop_assert_eq!(tile.to_string(), path);
            }
        }

        #[test]
        fn bundles_round_trip(leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut bundle = Vec::new();
            leaves.iter().for_each(|leaf| push_entry(&mut bundle, leaf));
            prop_assert_eq!(entries(&bundle).unwrap(), leaves);
        }

        #[test]
        fn noise_is_no_bundle_and_no_panic(noise in prop::collection::vec(any::<u8>(), 0..500)) {
            if let Some(leaves) = entries(&noise) {
                prop_assert_eq!(leaves.iter().map(|leaf| leaf.len() + 2).sum::<usize>(), noise.len());
            }
        }
    }
}
