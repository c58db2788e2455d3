//! The order of the leaves: which leaf has which index, decided once and durably, before any tile knows of it.
//!
//! A leaf stays here until a signed checkpoint covers it; then its bundle in the tree is where it is kept, and only its
//! hash and index remain.

use std::path::Path;

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::SqlitePool;
use tlog_tiles::record_hash;

use crate::store::{Durability, OpenError, close, from_db, open_pools, to_db};

const MIGRATIONS: &[&str] = &[include_str!("migrations/0001-leaves.sql"), include_str!("migrations/0002-sources.sql")];
/// Bytes of leaves that are read at a time, at least one leaf.
const PENDING_BYTES: usize = 16 * 1024 * 1024;

/// Where leaves come from, and how far it has been followed with them.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name.
    pub name: &'a str,
    /// The place of the last leaf in it, by its own count.
    pub position: i64,
}

/// Result of using the database.
pub type Result<T> = std::result::Result<T, sqlx::Error>;

/// The database of leaves.
#[derive(Clone, Debug)]
pub struct Leaves {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Leaves {
    /// Opens or creates it.
    pub async fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let (writer, readers) = open_pools(path, Durability::Full, MIGRATIONS).await?;
        Ok(Self { writer, readers })
    }

    /// Gives every leaf its index, durably: the next one, or the one that it has. Where they come from a source, how far it
    /// was followed is kept with them, in one step.
    pub async fn append(&self, source: Option<Source<'_>>, leaves: &[Vec<u8>]) -> Result<Vec<u64>> {
        let mut transaction = self.writer.begin().await?;
        let size: i64 = sqlx::query_scalar("SELECT size FROM log").fetch_one(&mut *transaction).await?;
        let mut next = size;
        let mut indices = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let hash = record_hash(leaf).0;
            let known: Option<i64> = sqlx::query_scalar("SELECT idx FROM leaf WHERE hash = ?")
                .bind(&hash[..])
                .fetch_optional(&mut *transaction)
                .await?;
            if let Some(index) = known {
                indices.push(from_db(index));
                continue;
            }
            sqlx::query("INSERT INTO leaf (hash, idx) VALUES (?, ?)")
                .bind(&hash[..])
                .bind(next)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("INSERT INTO pending (idx, data) VALUES (?, ?)")
                .bind(next)
                .bind(leaf.as_slice())
                .execute(&mut *transaction)
                .await?;
            indices.push(from_db(next));
            next += 1;
        }
        if next != size {
            sqlx::query("UPDATE log SET size = ?").bind(next).execute(&mut *transaction).await?;
        }
        if let Some(Source { name, position }) = source {
            sqlx::query("INSERT OR REPLACE INTO source (name, position) VALUES (?, ?)")
                .bind(name)
                .bind(position)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(indices)
    }

    /// How far a source was followed; 0 for one that is new.
    pub async fn position(&self, source: &str) -> Result<i64> {
        let position = sqlx::query_scalar("SELECT position FROM source WHERE name = ?");
        Ok(position.bind(source).fetch_optional(&self.readers).await?.unwrap_or(0))
    }

    /// How many there are.
    pub async fn size(&self) -> Result<u64> {
        sqlx::query_scalar("SELECT size FROM log").fetch_one(&self.readers).await.map(from_db)
    }

    /// Up to `limit` leaves from index `from` on, as far as they follow each other and fit into memory.
    pub async fn pending(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>> {
        let query = sqlx::query("SELECT idx, data FROM pending WHERE idx >= ? ORDER BY idx LIMIT ?");
        let mut rows = query.bind(to_db(from)).bind(limit).fetch(&self.readers);
        let (mut leaves, mut bytes) = (Vec::<Vec<u8>>::new(), 0);
        for expected in from.. {
            let Some(row) = rows.try_next().await? else { break };
            if from_db(row.try_get(0)?) != expected {
                break;
            }
            let leaf: Vec<u8> = row.try_get(1)?;
            bytes += leaf.len();
            if bytes > PENDING_BYTES && !leaves.is_empty() {
                break;
            }
            leaves.push(leaf);
        }
        Ok(leaves)
    }

    /// The index of the leaf with this hash.
    pub async fn index_of(&self, hash: &[u8; 32]) -> Result<Option<u64>> {
        let index: Option<i64> = sqlx::query_scalar("SELECT idx FROM leaf WHERE hash = ?")
            .bind(&hash[..])
            .fetch_optional(&self.readers)
            .await?;
        Ok(index.map(from_db))
    }

    /// Forgets the content of the leaves before `index`.
    pub async fn forget_before(&self, index: u64) -> Result<()> {
        sqlx::query("DELETE FROM pending WHERE idx < ?").bind(to_db(index)).execute(&self.writer).await?;
        Ok(())
    }

    /// Ends all connections.
    pub async fn close(&self) {
        close(&self.readers).await;
        close(&self.writer).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[tokio::test]
    async fn a_leaf_keeps_its_first_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leaves.db");
        let store = Leaves::open(&path).await.unwrap();
        assert_eq!(store.append(None, &leaves(&["a", "b", "a"])).await.unwrap(), [0, 1, 0]);
        store.close().await;
        let store = Leaves::open(&path).await.unwrap();
        assert_eq!(store.append(None, &leaves(&["b", "c", "c", "d"])).await.unwrap(), [1, 2, 2, 3]);
        assert_eq!(store.append(None, &[]).await.unwrap(), Vec::<u64>::new());
        assert_eq!(store.size().await.unwrap(), 4);
        assert_eq!(store.pending(1, 2).await.unwrap(), leaves(&["b", "c"]));
        store.forget_before(3).await.unwrap();
        assert_eq!(store.pending(3, 9).await.unwrap(), leaves(&["d"]));
        assert_eq!(store.pending(2, 9).await.unwrap(), leaves(&[]));
        assert_eq!(store.append(None, &leaves(&["a", "d"])).await.unwrap(), [0, 3]);
        assert_eq!(store.index_of(&record_hash(b"c").0).await.unwrap(), Some(2));
        assert_eq!(store.index_of(&[0; 32]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_source_is_followed_with_its_leaves_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let store = Leaves::open(&dir.path().join("leaves.db")).await.unwrap();
        let source = |position| Some(Source { name: "index", position });
        assert_eq!(store.position("index").await.unwrap(), 0);
        assert_eq!(store.append(source(7), &leaves(&["a", "b"])).await.unwrap(), [0, 1]);
        assert_eq!((store.position("index").await.unwrap(), store.position("other").await.unwrap()), (7, 0));
        // What cannot be written leaves the position as it was.
        sqlx::query("DROP TABLE pending").execute(&store.writer).await.unwrap();
        assert!(store.append(source(9), &leaves(&["c"])).await.is_err());
        assert_eq!((store.position("index").await.unwrap(), store.size().await.unwrap()), (7, 2));
    }

    #[tokio::test]
    async fn large_leaves_are_read_a_few_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Leaves::open(&dir.path().join("leaves.db")).await.unwrap();
        let large: Vec<Vec<u8>> = (0..5).map(|n| vec![n; PENDING_BYTES / 2]).collect();
        store.append(None, &large).await.unwrap();
        assert_eq!(store.pending(0, 9).await.unwrap(), large[..2]);
        assert_eq!(store.pending(4, 9).await.unwrap(), large[4..]);
    }
}
