//! The pin folder: maps, programs and links that outlive the agent.
//!
//! `PINS/v1-0123456789abcdef/` holds `map_NAME`, `prog_NAME` and `link_NAME`. It is built under a name with `-new` at its end (bpffs takes no dots)
//! and renamed when complete, so that a folder with the right name is always whole. Removing a link's pin detaches it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{error::KernelError, object};

/// End of the name of a folder that is not complete.
const UNFINISHED: &str = "-new";

/// Pins of one build of the agent.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    folder: PathBuf,
}

impl Pins {
    /// The folder of this build under `root`, which need not exist.
    pub fn of_this_build(root: &Path) -> Self {
        Self::of_build(root, &object::sha256())
    }

    /// The folder of the build whose object has this hash.
    pub fn of_build(root: &Path, sha256: &str) -> Self {
        Self { root: root.to_owned(), folder: root.join(object::pin_name(sha256)) }
    }

    /// The folder that holds those of every build.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of these.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Complete pins of another build with the same layout, whose maps can be used on.
    pub fn predecessor(&self) -> Option<Self> {
        let entries = fs::read_dir(&self.root).ok()?;
        let layout = object::layout_prefix();
        let mut names: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .filter(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                entry.path() != self.folder
                    && is_ours(&name)
                    && name.starts_with(&layout)
                    && !name.ends_with(UNFINISHED)
            })
            .map(|entry| entry.path())
            .collect();
        names.sort();
        names.into_iter().next().map(|folder| Self { root: self.root.clone(), folder })
    }

    /// Whether it exists, complete.
    pub fn complete(&self) -> bool {
        self.folder.is_dir()
    }

    /// Makes an empty folder to fill; what an interrupted attempt left is removed.
    pub fn begin(&self) -> Result<Self, KernelError> {
        let mut name = self.folder.clone().into_os_string();
        name.push(UNFINISHED);
        let folder = PathBuf::from(name);
        fs::create_dir_all(&self.root).map_err(|e| KernelError::pin("cannot make", &self.root, e))?;
        let kind = statfs(&self.root).map_err(|e| KernelError::pin("cannot look at", &self.root, e))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(KernelError::pin("cannot pin under", &self.root, io::Error::other("it is not a bpffs")));
        }
        remove_folder(&folder)?;
        fs::create_dir(&folder).map_err(|e| KernelError::pin("cannot make", &folder, e))?;
        Ok(Self { root: self.root.clone(), folder })
    }

    /// Gives the filled folder its name.
    pub fn finish(self, named: &Self) -> Result<(), KernelError> {
        fs::rename(&self.folder, &named.folder).map_err(|e| KernelError::pin("cannot rename", &self.folder, e))
    }

    /// Removes this build's pins, which detaches its programs once nobody holds them.
    pub fn remove(&self) -> Result<(), KernelError> {
        remove_folder(&self.folder)
    }

    /// Removes the pins of every other build. Their names, for the log.
    pub fn remove_others(&self) -> Result<Vec<String>, KernelError> {
        let mut removed = Vec::new();
        let entries = fs::read_dir(&self.root).map_err(|e| KernelError::pin("cannot list", &self.root, e))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path() != self.folder && is_ours(&name) {
                remove_folder(&entry.path())?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join(format!("map_{name}"))
    }

    /// Pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(format!("prog_{name}"))
    }

    /// Pin of a link.
    pub fn link(&self, name: &str) -> PathBuf {
        self.folder.join(format!("link_{name}"))
    }
}

/// `v1-0123456789abcdef`, with or without `-new`.
fn is_ours(name: &str) -> bool {
    let name = name.strip_suffix(UNFINISHED).unwrap_or(name);
    let Some((version, hash)) = name.strip_prefix('v').and_then(|rest| rest.split_once('-')) else { return false };
    version.parse::<u32>().is_ok() && hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Links first: a program must not run on after its maps' pins are gone and nobody can find them.
fn remove_folder(folder: &Path) -> Result<(), KernelError> {
    let failed = |e| KernelError::pin("cannot remove", folder, e);
    let mut pins: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    pins.sort_by_key(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link_")));
    for pin in pins {
        fs::remove_file(&pin).map_err(|e| KernelError::pin("cannot remove", &pin, e))?;
    }
    fs::remove_dir(folder).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_ours_are_removed() {
        for ours in ["v1-0123456789abcdef", "v12-0123456789abcdef-new", &object::pin_name(&object::sha256())] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["", "v1", "v1-0123", "x1-0123456789abcdef", "v-0123456789abcdef", "v1-0123456789abcdez", "cilium"]
        {
            assert!(!is_ours(other), "{other}");
        }
    }
}
