//! What the host keeps of its one-time codes: the file `codes` in the state folder.
//!
//! ```text
//! breakglass-codes v1
//! - 17 bcde 2026-01-31T23:59:59Z $argon2id$v=19$m=7168,t=5,p=1$SALT$HASH
//! x 18 fghj 2026-01-31T23:59:59Z $argon2id$…
//! ```
//!
//! A line a code: whether it is used, serial, mark, when it was issued, hash. Using a code overwrites the first byte of its line, in
//! place: one byte either changes or does not, whenever the power fails, and it takes no room on a disk that is full. Issuing replaces
//! the file. Both hold the lock `codes.lock`. The file belongs to root and nobody else may read it; if it is anything else, no code is
//! taken.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use nix::{
    fcntl::{Flock, FlockArg},
    libc,
};

use super::paper::Code;
use crate::{
    account::replace::{self, Lasting, Like, NoCheckpoint},
    regular,
};

const HEAD: &str = "breakglass-codes v1";

/// Most unused codes; more paper than that nobody guards.
pub const CODES_MAX: usize = 100;

/// Most lines, used ones included; issuing leaves the used ones out.
const LINES_MAX: usize = 2 * CODES_MAX;

/// Largest file, bytes. A line has about 150.
const FILE_MAX: u64 = 64 * 1024;

/// Argon2id: memory in KiB, passes, lanes. One of OWASP's recommended sets (password storage cheat sheet), the one with the least
/// memory: the agent must not be what runs out of it. With 64 random bits a code is safe at rest all the same.
const COST: (u32, u32, u32) = (7168, 5, 1);

const UNUSED: u8 = b'-';
const USED: u8 = b'x';

/// The host's codes.
#[derive(Clone, Debug)]
pub struct Book {
    path: PathBuf,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    used: bool,
    serial: u32,
    mark: String,
    issued: String,
    hash: String,
}

/// An unused code that was typed correctly.
#[derive(Debug)]
pub struct Found {
    /// Its serial number.
    pub serial: u32,
    /// How many unused ones there are besides it.
    pub left: usize,
    line: Line,
}

/// How many codes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// In the file.
    pub issued: usize,
    /// Of those, not used.
    pub left: usize,
}

/// Why a code does not open.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// There are none.
    #[error("this host has no one-time codes; issue some: breakglass-agent codes issue")]
    None,
    /// No such code.
    #[error("this is no code of this host; check the letters and the sheet's host")]
    Unknown,
    /// Used before.
    #[error("the code with the serial {0} was used before; take the next one on the sheet")]
    Used(u32),
    /// The file cannot be used.
    #[error("this host cannot use its one-time codes: {0}")]
    Unusable(io::Error),
}

impl CodeError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::None => "no-codes",
            Self::Unknown => "bad-code",
            Self::Used(_) => "used-code",
            Self::Unusable(_) => "codes-unusable",
        }
    }
}

impl From<io::Error> for CodeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::None,
            _ => Self::Unusable(error),
        }
    }
}

impl Book {
    /// The codes in the state folder.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("codes") }
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finds what was typed. Costs a hash where the mark is known, and next to nothing where it is not. Uses nothing up.
    pub fn find(&self, code: &Code) -> Result<Found, CodeError> {
        let lines = self.lines()?;
        let left = lines.iter().filter(|line| !line.used).count();
        let line = lines.into_iter().find(|line| line.mark == code.mark()).ok_or(CodeError::Unknown)?;
        let hash = PasswordHash::new(&line.hash).map_err(|e| CodeError::Unusable(damaged(e)))?;
        Argon2::default().verify_password(code.secret(), &hash).map_err(|_| CodeError::Unknown)?;
        if line.used {
            return Err(CodeError::Used(line.serial));
        }
        Ok(Found { serial: line.serial, left: left.saturating_sub(1), line })
    }

    /// Marks the code as used; on the disk when this returns. Of two at once on one code exactly one succeeds.
    pub fn burn(&self, found: &Found) -> Result<(), CodeError> {
        let _held = self.hold()?;
        let mut file = open(&self.path, true)?;
        let text = read(&mut file)?;
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            match Line::parse(line.trim_end()) {
                Some(same) if same == found.line => {
                    file.write_all_at(&[USED], at)?;
                    file.sync_data()?;
                    return self.check_burnt(found);
                }
                Some(same) if (Line { used: false, ..same.clone() }) == found.line => {
                    return Err(CodeError::Used(found.serial));
                }
                _ => at += line.len() as u64,
            }
        }
        // Replaced by a new sheet meanwhile.
        Err(CodeError::Unknown)
    }

    /// Makes new codes. Earlier unused ones stay good only where `keep` says so. They are returned once, and nowhere kept.
    pub fn issue(&self, count: usize, keep: bool, now: &str) -> Result<Vec<(u32, Code)>, CodeError> {
        let _held = self.hold()?;
        let earlier = match self.lines() {
            Err(CodeError::None) => Vec::new(),
            // Damage is no reason not to start anew.
            Err(_) if !keep => Vec::new(),
            lines => lines?,
        };
        let mut serial = earlier.iter().map(|line| line.serial).max().unwrap_or(0);
        let mut lines: Vec<Line> = earlier.into_iter().filter(|line| keep && !line.used).collect();
        if count == 0 || lines.len() + count > CODES_MAX {
            return Err(CodeError::Unusable(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there may be 1 to {CODES_MAX} unused codes, not {}", lines.len() + count),
            )));
        }
        let mut codes = Vec::new();
        while codes.len() < count {
            let code = Code::new(rand::random());
            // Sixty-five thousand marks: hardly ever.
            if lines.iter().any(|line| line.mark == code.mark()) {
                continue;
            }
            serial = serial.saturating_add(1);
            lines.push(Line { used: false, serial, mark: code.mark(), issued: now.to_owned(), hash: hash(&code)? });
            codes.push((serial, code));
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let text = format!("{HEAD}\n{text}");
        replace::replace(&self.path, text.as_bytes(), Like::Mode(0o600), Lasting::Durable, &NoCheckpoint)?;
        Ok(codes)
    }

    /// How many there are.
    pub fn tally(&self) -> Result<Tally, CodeError> {
        let lines = self.lines()?;
        Ok(Tally { issued: lines.len(), left: lines.iter().filter(|line| !line.used).count() })
    }

    /// Serials of the unused ones, and when they were issued.
    pub fn unused(&self) -> Result<Vec<(u32, String)>, CodeError> {
        Ok(self.lines()?.into_iter().filter(|line| !line.used).map(|line| (line.serial, line.issued)).collect())
    }

    fn lines(&self) -> Result<Vec<Line>, CodeError> {
        let text = read(&mut open(&self.path, false)?)?;
        Ok(parse(&text)?)
    }

    fn hold(&self) -> Result<Flock<File>, CodeError> {
        let file = regular::open_lock(&self.path.with_extension("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| CodeError::Unusable(errno.into()))
    }

    /// A disk that took the byte and did not keep it would let the code in again.
    fn check_burnt(&self, found: &Found) -> Result<(), CodeError> {
        let burnt = Line { used: true, ..found.line.clone() };
        match self.lines()?.contains(&burnt) {
            true => Ok(()),
            false => Err(CodeError::Unusable(io::Error::other("a used code could not be marked as used"))),
        }
    }
}

fn hash(code: &Code) -> Result<String, CodeError> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).map_err(|e| CodeError::Unusable(damaged(e)))?;
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(|e| CodeError::Unusable(damaged(e)))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(code.secret(), &salt).map_err(|e| CodeError::Unusable(damaged(e)))?;
    Ok(hash.to_string())
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}; issue new ones: breakglass-agent codes issue"))
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    let mine = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    if !meta.is_file() || !mine || meta.mode() & 0o077 != 0 || meta.len() > FILE_MAX {
        return Err(damaged(format!("{} is not a file that only root can read", path.display())));
    }
    Ok(file)
}

fn read(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> io::Result<Vec<Line>> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) || !text.ends_with('\n') || text.len() as u64 > FILE_MAX {
        return Err(damaged("the file of codes is damaged"));
    }
    let lines: Option<Vec<Line>> = lines.map(Line::parse).collect();
    lines.filter(|lines| lines.len() <= LINES_MAX).ok_or_else(|| damaged("a line of the file of codes is damaged"))
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let used = match words.next()?.as_bytes() {
            [UNUSED] => false,
            [USED] => true,
            _ => return None,
        };
        let mut next = || words.next().filter(|word| !word.is_empty()).map(str::to_owned);
        let line = Self { used, serial: next()?.parse().ok()?, mark: next()?, issued: next()?, hash: next()? };
        words.next().is_none().then_some(line)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = char::from(if self.used { USED } else { UNUSED });
        write!(f, "{used} {} {} {} {}", self.serial, self.mark, self.issued, self.hash)
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
