//! Which host this is, and which boot of it.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::regular;

/// Largest file with an id, bytes; more than any has.
const FILE_MAX: u64 = 4096;

/// The kernel's id of this boot, `/proc/sys/kernel/random/boot_id`, `random(4)`.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Uuid::parse_str(text.trim()).map(Uuid::into_bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The host's id: from its enrolment, or, before it is enrolled, made once and kept in the state folder.
pub fn host_id(enrolment: &Path, state: &Path) -> io::Result<String> {
    for folder in [enrolment, state] {
        match read(&folder.join("host-id")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
    }
    let id = Uuid::new_v4().to_string();
    let mut file = tempfile::Builder::new().prefix(".host-id-").tempfile_in(state)?;
    writeln!(file, "{id}")?;
    file.as_file().sync_all()?;
    file.persist(state.join("host-id"))?;
    Ok(id)
}

fn read(path: &Path) -> io::Result<String> {
    let text = regular::read_to_string(path, FILE_MAX)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Uuid::parse_str(text.trim()).map(|id| id.to_string()).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} does not hold a host id: {error}", path.display()))
    })
}

/// Where the signing key is kept.
pub fn keys_folder(state: &Path) -> PathBuf {
    state.join("keys")
}

/// The machine's host name, `uname(2)`.
pub fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

/// The running kernel's release, `uname(2)`.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".into(), |uname| uname.release().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once_and_an_enrolment_wins() {
        let (enrolment, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = host_id(enrolment.path(), state.path()).unwrap();
        assert_eq!(host_id(enrolment.path(), state.path()).unwrap(), made);
        let enrolled = Uuid::new_v4().to_string();
        fs::write(enrolment.path().join("host-id"), format!("{enrolled}\n")).unwrap();
        assert_eq!(host_id(enrolment.path(), state.path()).unwrap(), enrolled);
        fs::write(enrolment.path().join("host-id"), "web1").unwrap();
        let error = host_id(enrolment.path(), state.path()).unwrap_err().to_string();
        assert!(error.contains("host-id"), "{error}");
        regular::tests::trap(&enrolment.path().join("host-id"));
        let error = regular::tests::untrapped(move || host_id(enrolment.path(), state.path())).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn this_boot_has_an_id() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
