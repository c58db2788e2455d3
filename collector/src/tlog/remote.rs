//! Reads a log that somebody serves, over HTTP or from a copy of its files, whole: every leaf, checked against the checkpoint.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri};

use super::client::{Http, causes};
use super::note::{NOTE_MAX, SignedCheckpoint};
use super::tile::{BUNDLE_MAX, Content, TILE_WIDTH, TilePath, entries};
use breakglass_proof::merkle::{Growing, leaf_hash};

/// How long one file may take.
const FILE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a log cannot be read, or is not what its checkpoint says.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The medium.
    #[error("cannot read {path} of the log: {why}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        why: String,
    },
    /// A file that must be there.
    #[error("the log has no {0}")]
    Missing(String),
    /// A bundle that is none.
    #[error("{0} of the log is damaged")]
    Damaged(String),
    /// The leaves are others.
    #[error(
        "the first {size} leaves do not give the root that {what} says: the log was rewritten, or its copy is damaged"
    )]
    Root {
        /// Leaves.
        size: u64,
        /// Who says another root.
        what: &'static str,
    },
}

/// Where a log is.
pub enum Remote {
    /// Served.
    Web(Box<Http>, Uri),
    /// A folder with `checkpoint` and `tile/`.
    Files(PathBuf),
}

impl Remote {
    /// The checkpoint as it is, unverified.
    pub async fn checkpoint(&self) -> Result<Vec<u8>, RemoteError> {
        self.file("checkpoint", NOTE_MAX).await?.ok_or_else(|| RemoteError::Missing("checkpoint".to_owned()))
    }

    /// Gives every leaf to `take`, in order; an error if they are not what `checkpoint` and, of its size, `earlier` say.
    pub async fn leaves(
        &self,
        checkpoint: &SignedCheckpoint,
        earlier: Option<&SignedCheckpoint>,
        mut take: impl FnMut(u64, &[u8]),
    ) -> Result<(), RemoteError> {
        let size = checkpoint.size();
        let mut growing = Growing::default();
        while growing.size() < size {
            let bundle = self.bundle(growing.size(), size).await?;
            for leaf in &bundle {
                take(growing.size(), leaf);
                growing.push(leaf_hash(leaf));
                if let Some(earlier) = earlier.filter(|earlier| earlier.size() == growing.size()) {
                    agrees(&growing, earlier, "your earlier checkpoint")?;
                }
            }
        }
        agrees(&growing, checkpoint, "the log's checkpoint")
    }

    /// The leaves from `at` on, up to the end of their bundle.
    async fn bundle(&self, at: u64, size: u64) -> Result<Vec<Vec<u8>>, RemoteError> {
        let missing = || RemoteError::Missing(format!("leaf {at}"));
        let tile = TilePath::holding(Content::Entries, at, size).ok_or_else(missing)?;
        for candidate in [tile, tile.full()] {
            let path = candidate.to_string();
            let Some(content) = self.file(&path, BUNDLE_MAX).await? else { continue };
            let leaves = entries(&content).filter(|leaves| leaves.len() >= usize::from(tile.width));
            let leaves = leaves.ok_or(RemoteError::Damaged(path))?;
            let (skip, width) = ((at % TILE_WIDTH) as usize, usize::from(tile.width));
            return Ok(leaves.into_iter().take(width).skip(skip).map(<[u8]>::to_vec).collect());
        }
        Err(missing())
    }

    async fn file(&self, path: &str, max: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let wrong = |why: String| RemoteError::Read { path: path.to_owned(), why };
        match self {
            Self::Files(folder) => {
                let file = folder.join(path);
                match tokio::fs::read(&file).await {
                    Ok(content) if content.len() > max => Err(wrong(format!("longer than {max} bytes"))),
                    Ok(content) => Ok(Some(content)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(wrong(error.to_string())),
                }
            }
            Self::Web(http, url) => {
                let fetching = fetch(http, url, path, max);
                let fetched = tokio::time::timeout(FILE_TIMEOUT, fetching).await;
                fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", FILE_TIMEOUT.as_secs()))).map_err(wrong)
            }
        }
    }
}

fn agrees(growing: &Growing, checkpoint: &SignedCheckpoint, what: &'static str) -> Result<(), RemoteError> {
    match growing.root() == checkpoint.root().0 {
        true => Ok(()),
        false => Err(RemoteError::Root { size: growing.size(), what }),
    }
}

async fn fetch(http: &Http, url: &Uri, path: &str, max: usize) -> Result<Option<Vec<u8>>, String> {
    let url = format!("{}/{path}", url.to_string().trim_end_matches('/'));
    let request = Request::builder().method(Method::GET).uri(url).body(Full::new(Bytes::new()));
    let response = http.request(request.map_err(|error| causes(&error))?).await.map_err(|error| causes(&error))?;
    match response.status() {
        StatusCode::OK => {
            let body = Limited::new(response.into_body(), max).collect().await.map_err(|error| error.to_string())?;
            Ok(Some(body.to_bytes().to_vec()))
        }
        StatusCode::NOT_FOUND => Ok(None),
        other => Err(format!("the server answered {other}")),
    }
}
