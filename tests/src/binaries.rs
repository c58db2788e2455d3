//! The programs under test, as cargo built them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Folder with the built programs, where it is not the one that this program lies in.
pub const FOLDER_VARIABLE: &str = "BREAKGLASS_BIN_DIR";

/// Paths of the built programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The root daemon.
    pub agent: PathBuf,
    /// The server.
    pub collector: PathBuf,
    /// The operators' and reviewers' command.
    pub cli: PathBuf,
    /// What the tests let the emergency account run, see `src/bin/probe.rs`.
    pub probe: PathBuf,
}

impl Binaries {
    /// Finds them beside this program or in [`FOLDER_VARIABLE`].
    pub fn find() -> Result<Self> {
        let folder = match std::env::var_os(FOLDER_VARIABLE) {
            Some(folder) => PathBuf::from(folder),
            None => own_folder()?,
        };
        Ok(Self {
            agent: in_folder(&folder, "breakglass-agent")?,
            collector: in_folder(&folder, "breakglass-collector")?,
            cli: in_folder(&folder, "breakglass")?,
            probe: in_folder(&folder, "breakglass-probe")?,
        })
    }
}

fn in_folder(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is not there: run `cargo build --workspace` first, or `cargo xtask test`",
        path.display()
    );
    Ok(path)
}

fn own_folder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program lies in no folder")?;
    // Test programs lie one level below the others.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}
