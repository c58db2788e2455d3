//! How this host gets its certificate from a collector, and a new one before the old one ends.
//!
//! The private key is made here and never leaves. Joining takes a one-time token, whose last part is the hash of the collector's
//! CA certificate: a host that knows no CA yet is not talked into another one. Renewing takes the certificate that is to be
//! replaced, and keeps the key, so that key and certificate fit each other at every moment, whenever the host stops.

mod join;
mod renew;
mod token;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use join::{Join, join};
pub use renew::{Renewal, is_due};
pub use token::Token;

use crate::account::replace::{Lasting, Like, NoCheckpoint};

/// Files of the enrolment folder.
const CA: &str = "ca.crt";
const CERT: &str = "host.crt";
const KEY: &str = "host.key";
const ID: &str = "host-id";

/// Largest file of it, bytes; a chain of certificates has some thousands.
pub(crate) const FILE_MAX: u64 = 1 << 20;

/// Why a certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Not a token, or one that was cut.
    #[error("this is not a whole token; it begins with \"bge1.\" and has 101 characters")]
    Token,
    /// The folder holds an enrolment already.
    #[error("{0} holds an enrolment already; --again replaces it")]
    Enrolled(PathBuf),
    /// A file of the enrolment folder.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A key or certificate that cannot be used.
    #[error("{path}: {message}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// No connection, or not to the collector of the token.
    #[error("cannot reach the collector at {url}: {reason}")]
    Connect {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The collector said no.
    #[error("the collector refuses: {0}")]
    Refused(String),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnrolError {
    move |source| EnrolError::File { what, path: path.to_owned(), source }
}

/// A certificate request for a key, DER. It names nobody: who this is, the collector knows from the token or the certificate.
fn request_for(key: &rcgen::KeyPair, path: &Path) -> Result<Vec<u8>, EnrolError> {
    let request = rcgen::CertificateParams::default().serialize_request(key);
    let unusable = |error: rcgen::Error| EnrolError::Unusable { path: path.to_owned(), message: error.to_string() };
    Ok(request.map_err(unusable)?.der().to_vec())
}

/// Replaces a file so that a crash leaves the old or the new one.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), EnrolError> {
    crate::account::replace::replace(path, content, Like::Mode(mode), Lasting::Durable, &NoCheckpoint)
        .map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::regular::tests::{trap, untrapped};

    #[test]
    fn what_lies_beside_a_file_is_no_trap_for_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CERT);
        trap(&dir.path().join("host.new"));
        trap(&dir.path().join(".host.crt.breakglass-new"));
        let place = path.clone();
        untrapped(move || replace(&place, b"new", 0o644)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
