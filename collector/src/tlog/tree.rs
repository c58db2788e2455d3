//! The Merkle tree of RFC 6962 in tiles on disk: growing it, and reading roots, proofs and leaves from it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::{Path, PathBuf};

use tlog_tiles::{Hash, HashReader, Tile, prove_record, prove_tree, record_hash, tree_hash};

use super::disk::{SharedDisk, create_dirs, place};
use super::tile::{BUNDLE_MAX, Content, HASH_BYTES, TILE_BYTES, TILE_WIDTH, TilePath, entries, push_entry};

/// Height of a tile: it spans 2^8 hashes of its level.
const TILE_HEIGHT: u8 = 8;
/// Largest tree that is read or written. Positions of stored hashes, about twice the size, stay in 63 bits; at a million
/// leaves a second it takes 142,000 years.
pub const SIZE_MAX: u64 = 1 << 62;

/// Why the tree cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file system.
    #[error("cannot {doing} {path}: {source}")]
    Disk {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that the tree needs is not there or not whole.
    #[error("{0} is missing or damaged; restore it from a copy of the log")]
    Damaged(PathBuf),
    /// A file holds something else than what would be written now.
    #[error(
        "{0} was written before with another content: two histories of the log are mixed here, and nothing was changed"
    )]
    Conflict(PathBuf),
    /// Asked for something outside of the tree.
    #[error("{what} is not in a log of {size} leaves")]
    Outside {
        /// What was asked for.
        what: String,
        /// What there is.
        size: u64,
    },
    /// The library found its own arithmetic wrong.
    #[error("cannot compute a proof: {0}")]
    Library(tlog_tiles::Error),
}

type Result<T> = std::result::Result<T, TreeError>;

/// The tiles in a folder, as of a number of leaves.
#[derive(Clone)]
pub struct Tree {
    disk: SharedDisk,
    root: PathBuf,
    size: u64,
}

impl Tree {
    /// The first `size` leaves of the log in folder `root`.
    pub fn new(disk: SharedDisk, root: &Path, size: u64) -> Self {
        Self { disk, root: root.to_owned(), size }
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root hash of the first `size` leaves.
    pub fn root_at(&self, size: u64) -> Result<Hash> {
        self.within(size)?;
        self.read(|reader| tree_hash(size, reader))
    }

    /// The audit path of leaf `index` in the tree of the first `size` leaves.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Hash>> {
        self.within(size)?;
        if index >= size {
            return Err(TreeError::Outside { what: format!("leaf {index}"), size });
        }
        self.read(|reader| prove_record(size, index, reader))
    }

    /// The proof that the first `new` leaves begin with the first `old`. Empty from 0 and between equal sizes.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<Hash>> {
        self.within(new)?;
        if old > new {
            return Err(TreeError::Outside { what: format!("size {old}"), size: new });
        }
        if old == 0 {
            return Ok(Vec::new());
        }
        self.read(|reader| prove_tree(new, old, reader))
    }

    /// A leaf, checked against its hash in the tree.
    pub fn leaf(&self, index: u64) -> Result<Vec<u8>> {
        let outside = || TreeError::Outside { what: format!("leaf {index}"), size: self.size };
        let tile = TilePath::holding(Content::Entries, index, self.size).ok_or_else(outside)?;
        let bundle = self.load(tile)?;
        let damaged = || TreeError::Damaged(self.path(tile));
        let place = (index % TILE_WIDTH) as usize;
        let leaf = *entries(&bundle).ok_or_else(damaged)?.get(place).ok_or_else(damaged)?;
        let hashes = self.load(TilePath { content: Content::Hashes(0), ..tile })?;
        match hash_in(&hashes, place) == Some(record_hash(leaf)) {
            true => Ok(leaf.to_owned()),
            false => Err(damaged()),
        }
    }

    /// Appends leaves: writes every tile and bundle that they change and makes them durable. A tile that is there
    /// already, from an attempt that was cut short, must hold the very same.
    pub fn extend(&mut self, leaves: &[Vec<u8>]) -> Result<()> {
        let new_size = self.size + leaves.len() as u64;
        if new_size > SIZE_MAX {
            return Err(TreeError::Outside { what: format!("size {new_size}"), size: SIZE_MAX });
        }
        let mut growth = Growth { tree: self, touched: Vec::new(), filled: Vec::new() };
        growth.bundles(leaves)?;
        let mut hashes: Vec<Hash> = leaves.iter().map(|leaf| record_hash(leaf)).collect();
        for level in 0..TILE_HEIGHT {
            if hashes.is_empty() {
                break;
            }
            hashes = growth.level(level, &hashes)?;
        }
        let Growth { touched, filled, .. } = growth;
        for dir in touched {
            self.disk.sync_dir(&dir).map_err(failed("sync", &dir))?;
        }
        // Only now: until the full tile is durable, the partial ones are all there is.
        for tile in filled {
            let dir = self.root.join(tile.partial_dir());
            self.disk.remove_dir(&dir).map_err(failed("remove", &dir))?;
        }
        self.size = new_size;
        Ok(())
    }

    fn within(&self, size: u64) -> Result<()> {
        match size <= self.size {
            true => Ok(()),
            false => Err(TreeError::Outside { what: format!("size {size}"), size: self.size }),
        }
    }

    fn path(&self, tile: TilePath) -> PathBuf {
        self.root.join(tile.to_string())
    }

    /// A tile or bundle of just this width. The narrower states of a tile are removed when it is full.
    fn load(&self, tile: TilePath) -> Result<Vec<u8>> {
        for candidate in [tile, tile.full()] {
            let Some(mut content) = self.load_file(candidate)? else { continue };
            let len = match tile.content {
                Content::Hashes(_) => usize::from(tile.width) * HASH_BYTES,
                Content::Entries => bundle_len(&content, tile.width).unwrap_or(usize::MAX),
            };
            if content.len() < len {
                return Err(TreeError::Damaged(self.path(candidate)));
            }
            content.truncate(len);
            return Ok(content);
        }
        Err(TreeError::Damaged(self.path(tile)))
    }

    fn load_file(&self, tile: TilePath) -> Result<Option<Vec<u8>>> {
        let path = self.path(tile);
        let max = match tile.content {
            Content::Hashes(_) => TILE_BYTES,
            Content::Entries => BUNDLE_MAX,
        };
        self.disk.read(&path, max).map_err(failed("read", &path))
    }

    /// Runs an algorithm of the library over the tiles. Its callbacks can only fail with its own errors, so ours is
    /// kept aside.
    fn read<T>(&self, run: impl FnOnce(&Reader) -> std::result::Result<T, tlog_tiles::Error>) -> Result<T> {
        let reader = Reader { tree: self, loaded: RefCell::default(), failure: RefCell::default() };
        run(&reader).map_err(|error| match reader.failure.take() {
            Some(failure) => failure,
            None => TreeError::Library(error),
        })
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::Disk { doing, path: path.to_owned(), source }
}

/// Bytes that the first `width` entries of a bundle take.
fn bundle_len(bundle: &[u8], width: u16) -> Option<usize> {
    let leaves = entries(bundle)?;
    Some(leaves.get(..usize::from(width))?.iter().map(|leaf| 2 + leaf.len()).sum())
}

fn hash_in(tile: &[u8], place: usize) -> Option<Hash> {
    let bytes = tile.get(place * HASH_BYTES..(place + 1) * HASH_BYTES)?;
    Some(Hash(bytes.try_into().ok()?))
}

/// Reads the hashes that the library asks for by position. One serves one proof, so what it keeps is bounded by the
/// tiles on two paths through the tree.
struct Reader<'a> {
    tree: &'a Tree,
    loaded: RefCell<HashMap<(u8, u64), Vec<u8>>>,
    failure: RefCell<Option<TreeError>>,
}

impl Reader<'_> {
    fn hash(&self, position: u64) -> std::result::Result<Hash, tlog_tiles::Error> {
        let narrow = Tile::from_index(TILE_HEIGHT, position);
        let (level, index) = (narrow.level(), narrow.level_index());
        let mut loaded = self.loaded.borrow_mut();
        let content = match loaded.entry((level, index)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.load(level, index).map_err(|failure| {
                self.failure.replace(Some(failure));
                tlog_tiles::Error::InvalidTile
            })?),
        };
        narrow.hash_at_index(content, position)
    }

    fn load(&self, level: u8, index: u64) -> Result<Vec<u8>> {
        let outside = || TreeError::Outside { what: format!("tile {index} of level {level}"), size: self.tree.size };
        let count = self.tree.size.checked_shr(u32::from(level) * u32::from(TILE_HEIGHT)).unwrap_or(0);
        let first = index.checked_mul(TILE_WIDTH).ok_or_else(outside)?;
        let tile = TilePath::holding(Content::Hashes(level), first, count).ok_or_else(outside)?;
        self.tree.load(tile)
    }
}

impl HashReader for Reader<'_> {
    fn read_hashes(&self, positions: &[u64]) -> std::result::Result<Vec<Hash>, tlog_tiles::Error> {
        positions.iter().map(|position| self.hash(*position)).collect()
    }
}

/// The writing of one [`Tree::extend`].
struct Growth<'a> {
    tree: &'a Tree,
    /// Folders whose names have to be made durable.
    touched: Vec<PathBuf>,
    /// Tiles that became full.
    filled: Vec<TilePath>,
}

impl Growth<'_> {
    fn bundles(&mut self, leaves: &[Vec<u8>]) -> Result<()> {
        let mut leaves = leaves.iter();
        let mut count = self.tree.size;
        while leaves.len() > 0 {
            let mut bundle = self.begun(Content::Entries, count)?;
            let room = (TILE_WIDTH - count % TILE_WIDTH) as usize;
            for leaf in leaves.by_ref().take(room) {
                push_entry(&mut bundle, leaf);
                count += 1;
            }
            self.write(Content::Entries, count, &bundle)?;
        }
        Ok(())
    }

    /// Appends hashes to a level; returns those of the tiles that are full now, which the level above appends.
    fn level(&mut self, level: u8, hashes: &[Hash]) -> Result<Vec<Hash>> {
        let content = Content::Hashes(level);
        let mut count = self.tree.size >> (u32::from(level) * u32::from(TILE_HEIGHT));
        let mut above = Vec::new();
        let mut hashes = hashes.iter();
        while hashes.len() > 0 {
            let mut tile = self.begun(content, count)?;
            let room = (TILE_WIDTH - count % TILE_WIDTH) as usize;
            for hash in hashes.by_ref().take(room) {
                tile.extend_from_slice(&hash.0);
                count += 1;
            }
            self.write(content, count, &tile)?;
            if count.is_multiple_of(TILE_WIDTH) {
                above.push(Tile::subtree_hash(&tile));
            }
        }
        Ok(above)
    }

    /// What is there of the tile that the next hash or leaf of a level of `count` goes into.
    fn begun(&self, content: Content, count: u64) -> Result<Vec<u8>> {
        match TilePath::holding(content, count.saturating_sub(1), count) {
            Some(tile) if !tile.is_full() => self.tree.load(tile),
            _ => Ok(Vec::new()),
        }
    }

    /// Writes the last tile of a level of `count`.
    fn write(&mut self, content: Content, count: u64, bytes: &[u8]) -> Result<()> {
        let Some(tile) = TilePath::holding(content, count.saturating_sub(1), count) else { return Ok(()) };
        let path = self.tree.path(tile);
        if tile.is_full() {
            self.filled.push(tile);
        }
        let dir = path.parent().unwrap_or(&self.tree.root);
        match self.tree.load_file(tile)? {
            Some(there) if there == bytes => {}
            Some(_) => return Err(TreeError::Conflict(path)),
            None => {
                create_dirs(self.tree.disk.as_ref(), dir).map_err(failed("create", dir))?;
                place(self.tree.disk.as_ref(), &path, bytes).map_err(failed("write", &path))?;
            }
        }
        // Also for what was there: the attempt that wrote it may have been cut short before this.
        if !self.touched.iter().any(|touched| touched == dir) {
            self.touched.push(dir.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
