//! Holds proofs against this host: its clocks, its challenges, its policy and its lists of signers and revoked keys.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use breakglass_api::{
    grant::{CloseText, Request},
    v1,
};
use jiff::tz::TimeZone;

use super::{
    code::{self, CodeGrant},
    counters::Counters,
    source::Source,
    used::Used,
};
use crate::{
    blocking,
    codes::Book,
    grant::{
        self, Check, Clock, Policy, Refusal, Signed, VerifiedClose, VerifiedGrant,
        nonce::{Lasting, Nonces},
        prepared::Number,
        revoked::Revoked,
        signers::{AllowedSigners, FILE_MAX},
    },
    regular,
    session::clock,
};

/// The host's time zone.
const LOCALTIME: &str = "/etc/localtime";

/// How long finding it out may take: some milliseconds are usual.
const ZONE_LIMIT: Duration = Duration::from_secs(5);

/// What the verifier is told about the host.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The host's id.
    pub host_id: String,
    /// The name that operators use.
    pub host_name: String,
    /// This boot.
    pub boot_id: [u8; 16],
    /// The emergency account's name.
    pub account: String,
    /// Its user id; it may close its own session over the Unix socket.
    pub account_uid: u32,
}

/// Holds proofs against this host. Calls may block on its files.
pub struct Verifier {
    identity: Identity,
    terms: RwLock<Arc<Terms>>,
    nonces: Nonces,
    counters: Counters,
    codes: Book,
    used: Used,
}

/// What the configuration says about grants.
struct Terms {
    policy: Policy,
    default_ttl: Duration,
    signers: SignersFile,
    revoked_keys: Option<PathBuf>,
}

impl Terms {
    fn new(identity: &Identity, config: &crate::config::Grant) -> Self {
        let (host_id, boot_id) = (identity.host_id.clone(), identity.boot_id);
        Self {
            policy: Policy { host_id, boot_id, max_ttl: config.max_ttl, rules: config.rules() },
            default_ttl: config.default_ttl,
            signers: SignersFile::new(config.allowed_signers.clone()),
            revoked_keys: config.revoked_keys.clone(),
        }
    }
}

impl Verifier {
    /// A verifier with a nonce key of its own: what an earlier run handed out is no good any more. `state` holds one-time codes, the
    /// counters of FIDO keys and which prepared grants were used.
    pub fn new(identity: Identity, config: &crate::config::Grant, state: &Path) -> Self {
        let terms = RwLock::new(Arc::new(Terms::new(&identity, config)));
        Self {
            identity,
            terms,
            nonces: Nonces::new(rand::random()),
            counters: Counters::open(state),
            codes: Book::new(state),
            used: Used::at(state),
        }
    }

    /// Takes over what the configuration says about grants now. Challenges that were handed out stay good for as long as they were.
    pub fn refresh(&self, config: &crate::config::Grant) {
        let terms = Arc::new(Terms::new(&self.identity, config));
        *self.terms.write().unwrap_or_else(PoisonError::into_inner) = terms;
    }

    fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.terms.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes what has to be on the disk before it is needed.
    pub fn prepare(&self) {
        self.used.make();
    }

    /// Who this host is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A fresh challenge. Nothing is kept for it. It lasts for as many signers as the host asks for, or the caller says that there
    /// are: other hosts may ask for more under the same signature.
    pub fn challenge(&self, request: v1::ChallengeRequest) -> v1::Challenge {
        let terms = self.terms();
        let Policy { max_ttl, rules, .. } = &terms.policy;
        let said = usize::try_from(request.signers).unwrap_or(usize::MAX);
        let lasting = Lasting::for_signers(said.max(rules.required_signers));
        v1::Challenge {
            host_id: self.identity.host_id.clone(),
            hostname: self.identity.host_name.clone(),
            boot_id: self.identity.boot_id.to_vec(),
            nonce: self.nonces.make(clock::boot_ns(), rand::random(), lasting).to_vec(),
            valid_seconds: u32::try_from(lasting.seconds()).unwrap_or(u32::MAX),
            max_ttl_seconds: max_ttl.as_secs(),
            default_ttl_seconds: terms.default_ttl.as_secs(),
            account: self.identity.account.clone(),
            required_signers: u32::try_from(rules.required_signers).unwrap_or(u32::MAX),
            hardware_only: rules.hardware_only || rules.user_verification,
            ticket_pattern: rules.ticket.as_ref().map(|t| t.as_str().to_owned()).unwrap_or_default(),
        }
    }

    /// What a text answers, where that is a challenge of this host's which is good now, or the number of a grant that was signed ahead.
    /// Says nothing about the signature.
    pub fn challenge_of(&self, text: &[u8]) -> Option<Vec<u8>> {
        let claim = match Request::parse(text) {
            Ok(Request::Prepared(prepared)) => return Some(prepared.number.into()),
            Ok(Request::One(text)) => text.claim,
            Ok(Request::Many(many)) => many.for_host(&self.identity.host_id)?.claim,
            Err(_) => CloseText::parse(text).ok()?.claim,
        };
        self.nonces.check(&claim.nonce, clock::boot_ns()).ok()?;
        Some(claim.nonce)
    }

    /// Checks a request to break the glass; uses its nonce up if it is good. One that was signed ahead has none: see [`Self::use_up`].
    pub fn grant(
        &self,
        signed: Signed,
        cosignatures: &[v1::Cosignature],
        source: Source,
    ) -> Result<VerifiedGrant, Refusal> {
        let terms = self.terms();
        let (signers, revoked) = (terms.signers.load()?, terms.revoked()?);
        let check = self.check(&terms.policy, &signers, &revoked, source);
        let grant = grant::verify_grant(signed, cosignatures, &check)?;
        self.counters.check(&grant.signer)?;
        for cosigned in &grant.cosigned {
            self.counters.check(&cosigned.signer)?;
        }
        Ok(grant)
    }

    /// Notes for good that a prepared grant is used; refuses if it was.
    pub fn use_up(&self, number: &Number) -> Result<(), Refusal> {
        self.used.take(number)
    }

    /// Checks a request to close; uses its nonce up if it is good.
    pub fn close(&self, signed: Signed, source: Source) -> Result<VerifiedClose, Refusal> {
        let terms = self.terms();
        let (signers, revoked) = (terms.signers.load()?, terms.revoked()?);
        let close = grant::verify_close(signed, &self.check(&terms.policy, &signers, &revoked, source))?;
        self.counters.check(&close.signer)?;
        Ok(close)
    }

    /// Checks a request with a one-time code; burns the code if it is good.
    pub fn code(&self, request: &v1::CodeRequest, source: Source) -> Result<CodeGrant, Refusal> {
        let terms = self.terms();
        code::verify(request, source, &terms.policy, terms.default_ttl, &self.codes)
    }

    fn check<'a>(
        &'a self,
        policy: &'a Policy,
        signers: &'a AllowedSigners,
        revoked: &'a Revoked,
        source: Source,
    ) -> Check<'a> {
        let source = match source {
            Source::Tcp(address) => Some(address.ip()),
            Source::Unix { .. } => None,
        };
        Check { policy, signers, revoked, nonces: &self.nonces, clock: now(), source }
    }

    /// The revoked keys as they are now. A list that is named and cannot be used allows nobody.
    pub fn revoked(&self) -> Result<Revoked, Refusal> {
        self.terms().revoked()
    }

    /// The allowed_signers file as it is now, for `doctor`.
    pub fn signers(&self) -> Result<Arc<AllowedSigners>, Refusal> {
        self.terms().signers.load()
    }
}

impl Terms {
    /// The revoked keys as they are now. A list that is named and cannot be used allows nobody.
    fn revoked(&self) -> Result<Revoked, Refusal> {
        let Some(path) = &self.revoked_keys else { return Ok(Revoked::default()) };
        let read = read_trusted(path).map_err(|e| e.to_string());
        read.and_then(|bytes| Revoked::read(&bytes)).map_err(|why| {
            tracing::error!(path = %path.display(), why, "nobody can break the glass: the list of revoked keys cannot be used");
            Refusal::new(
                "no-revocations",
                format!(
                    "this host cannot use its list of revoked keys ({}: {why}); somebody with another way in has to mend it",
                    path.display()
                ),
            )
        })
    }
}

fn now() -> Clock {
    let wall_s = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    Clock { boot_ns: clock::boot_ns(), wall_s }
}

/// The allowed_signers file, read anew for every proof: whoever was struck off a moment ago is refused. Understood anew
/// only when it has changed. A file that cannot be read, or that others than its owner may write, allows nobody: a copy
/// from before could still name somebody who was struck off.
struct SignersFile {
    path: PathBuf,
    known: Mutex<Option<(Vec<u8>, Arc<AllowedSigners>)>>,
}

impl SignersFile {
    fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::new(None) }
    }

    fn load(&self) -> Result<Arc<AllowedSigners>, Refusal> {
        let bytes = read_trusted(&self.path).map_err(|error| {
            tracing::error!(path = %self.path.display(), %error, "nobody can break the glass: allowed_signers cannot be used");
            Refusal::new(
                "no-signers",
                format!(
                    "this host cannot use its list of signers ({}: {error}); somebody with another way in has to mend it",
                    self.path.display()
                ),
            )
        })?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((text, signers)) = &*known
            && *text == bytes
        {
            return Ok(Arc::clone(signers));
        }
        let signers = Arc::new(AllowedSigners::parse(&String::from_utf8_lossy(&bytes), zone().as_ref()));
        for problem in signers.problems() {
            tracing::warn!(path = %self.path.display(), line = problem.line, "allowed_signers: {}; the line allows nobody", problem.message);
        }
        *known = Some((bytes, Arc::clone(&signers)));
        Ok(signers)
    }
}

/// The host's time zone, for times in allowed_signers that name none. The library reads what it finds, through a whole folder; where that
/// does not end, such lines allow nobody.
fn zone() -> Option<TimeZone> {
    if regular::open(Path::new(LOCALTIME)).is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
        return None;
    }
    blocking::within(ZONE_LIMIT, TimeZone::try_system)?.ok()
}

/// Owned by root or by who runs this, and writable by nobody else.
fn read_trusted(path: &Path) -> io::Result<Vec<u8>> {
    let invalid = |message: &str| Err(io::Error::new(io::ErrorKind::InvalidData, message.to_owned()));
    let file = regular::open(path)?;
    let meta = file.metadata()?;
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return invalid("it belongs to another user; chown it to root");
    }
    if meta.mode() & 0o022 != 0 {
        return invalid("others may write it; chmod go-w");
    }
    regular::content(&file, FILE_MAX as u64)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

    #[test]
    fn a_change_counts_at_once_and_a_file_that_cannot_be_used_allows_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allowed_signers");
        let file = SignersFile::new(path.clone());
        assert_eq!(file.load().unwrap_err().code, "no-signers");
        fs::write(&path, format!("alice {KEY}\n")).unwrap();
        let first = file.load().unwrap();
        assert_eq!(first.entries().len(), 1);
        assert!(Arc::ptr_eq(&first, &file.load().unwrap()), "understood once");
        // The same length, within the same tick of the file system's clock.
        fs::write(&path, format!("carol {KEY}\n")).unwrap();
        assert_eq!(file.load().unwrap().entries()[0].principals, "carol");
        fs::write(&path, [&b"\xff\xfe broken\n"[..], b"alice ", KEY.as_bytes(), b"\n"].concat()).unwrap();
        let mixed = file.load().unwrap();
        assert_eq!((mixed.entries().len(), mixed.problems().len()), (1, 1));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(file.load().unwrap_err().message.contains("chmod"));
        fs::remove_file(&path).unwrap();
        assert_eq!(file.load().unwrap_err().code, "no-signers", "no earlier copy is used");
        regular::tests::trap(&path);
        let error = regular::tests::untrapped(move || file.load()).unwrap_err();
        assert!(error.message.contains("not a regular file"), "{error:?}");
    }
}
