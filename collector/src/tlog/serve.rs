//! The log over HTTP, as C2SP tlog-tiles has it: `/checkpoint`, `/tile/<L>/<N>[.p/<W>]`, `/tile/entries/<N>[.p/<W>]`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::disk::SharedDisk;
use super::log::Paths;
use super::note::NOTE_MAX;
use super::tile::{BUNDLE_MAX, TilePath};

/// A checkpoint is replaced up to once a second.
const CHECKPOINT_CACHE: &str = "public, max-age=1";
/// What is behind a tile's name never changes.
const TILE_CACHE: &str = "public, max-age=31536000, immutable";

struct Files {
    disk: SharedDisk,
    paths: Paths,
}

/// The routes of a log's files. Nothing but the published files can be named.
pub fn routes(disk: SharedDisk, paths: Paths) -> Router {
    Router::new()
        .route("/checkpoint", get(checkpoint))
        .route("/tile/{*place}", get(tile))
        .with_state(Arc::new(Files { disk, paths }))
}

async fn checkpoint(State(files): State<Arc<Files>>) -> Response {
    let path = files.paths.checkpoint();
    send(files, path, NOTE_MAX, "text/plain; charset=utf-8", CHECKPOINT_CACHE).await
}

async fn tile(State(files): State<Arc<Files>>, Path(place): Path<String>) -> Response {
    let Some(tile) = TilePath::parse(&format!("tile/{place}")) else { return missing() };
    let path = files.paths.public().join(tile.to_string());
    send(files, path, BUNDLE_MAX, "application/octet-stream", TILE_CACHE).await
}

fn missing() -> Response {
    // Not cached: it may be there in a second.
    (StatusCode::NOT_FOUND, [(CACHE_CONTROL, "no-store")], "not in this log\n").into_response()
}

async fn send(
    files: Arc<Files>,
    path: std::path::PathBuf,
    max: usize,
    kind: &'static str,
    cache: &'static str,
) -> Response {
    let name = path.clone();
    let read = tokio::task::spawn_blocking(move || files.disk.read(&path, max)).await;
    match read.map_err(std::io::Error::other).flatten() {
        Ok(Some(content)) => ([(CONTENT_TYPE, kind), (CACHE_CONTROL, cache)], content).into_response(),
        Ok(None) => missing(),
        Err(error) => {
            tracing::error!(%error, path = %name.display(), "cannot serve a file of the transparency log");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::tlog::disk::{OsDisk, create_dirs, replace};

    async fn ask(router: &Router, method: Method, path: &str) -> (StatusCode, String, String, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let header = |name| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let (status, kind, cache) = (response.status(), header(CONTENT_TYPE), header(CACHE_CONTROL));
        (status, kind, cache, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn only_published_files_are_served_with_their_types() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        create_dirs(&OsDisk, &paths.public().join("tile/0/000.p")).unwrap();
        replace(&OsDisk, &paths.checkpoint(), b"note").unwrap();
        replace(&OsDisk, &paths.public().join("tile/0/000.p/3"), b"hashes").unwrap();
        replace(&OsDisk, &paths.signed(), b"not public").unwrap();
        replace(&OsDisk, &paths.public().join("tile/0/stray"), b"not a tile").unwrap();
        let router = routes(Arc::new(OsDisk), paths);

        let note = ask(&router, Method::GET, "/checkpoint").await;
        let text = "text/plain; charset=utf-8";
        assert_eq!(note, (StatusCode::OK, text.into(), CHECKPOINT_CACHE.into(), b"note".to_vec()));
        let tile = ask(&router, Method::GET, "/tile/0/000.p/3").await;
        assert_eq!(tile, (StatusCode::OK, "application/octet-stream".into(), TILE_CACHE.into(), b"hashes".to_vec()));
        assert_eq!(ask(&router, Method::HEAD, "/tile/0/000.p/3").await.0, StatusCode::OK);
        assert_eq!(ask(&router, Method::POST, "/checkpoint").await.0, StatusCode::METHOD_NOT_ALLOWED);
        for path in [
            "/",
            "/signed",
            "/tile",
            "/tile/",
            "/tile/0/000",
            "/tile/0/stray",
            "/tile/0/../../../signed",
            "/tile/0/..%2f..%2f..%2fsigned",
            "/tile/%2e%2e/%2e%2e/signed",
            "/tile//0/000.p/3",
            "/tile/0/000.p/4",
            "/tile/0/000.p/3.tmp",
            "/tile/0/000%00",
        ] {
            let (status, _, cache, _) = ask(&router, Method::GET, path).await;
            assert!(status == StatusCode::NOT_FOUND && !cache.contains("immutable"), "{path}: {status}");
        }
    }
}
