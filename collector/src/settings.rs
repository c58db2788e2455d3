//! The collector's folder: which file lies where, and `collector.toml`.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::pki::Owner;
use crate::reviews::ReviewSettings;
use crate::tlog::settings::LogSettings;

/// `collector.toml`. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The name that clients verify the collector's certificate against.
    pub name: String,
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The transparency log.
    #[serde(default)]
    pub log: LogSettings,
    /// Reviews of sessions.
    #[serde(default)]
    pub review: ReviewSettings,
    /// Certificates for hosts.
    #[serde(default)]
    pub enrol: Enrol,
    /// What is done when an alarm is raised.
    #[serde(default)]
    pub alarms: Alarms,
}

/// Certificates for hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Enrol {
    /// How long a host's certificate is good, minutes. Agents renew theirs after a third of it.
    pub host_minutes: u32,
}

impl Default for Enrol {
    fn default() -> Self {
        // 30 days: a collector may be away for 20 of them before a host can neither ship nor be opened over TLS.
        Self { host_minutes: 30 * 24 * 60 }
    }
}

/// What is done when an alarm is raised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alarms {
    /// Program and arguments to be run for each, with the alarm as one JSON object on standard input; empty: none.
    pub exec: Vec<String>,
}

/// Longest time that a host's certificate may be good: a year.
const HOST_MINUTES_MAX: u32 = 365 * 24 * 60;

/// Where everything lies below the collector's folder.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of folder `root`, which need not exist yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The settings.
    pub fn config(&self) -> PathBuf {
        self.root.join("collector.toml")
    }

    /// Certificate of the private CA.
    pub fn ca_cert(&self) -> PathBuf {
        self.root.join("ca.crt")
    }

    /// Key of the private CA. Needed to enrol and to renew certificates of hosts, not to serve: it may be kept elsewhere as long as
    /// neither is due.
    pub fn ca_key(&self) -> PathBuf {
        self.root.join("ca.key")
    }

    /// The collector's own certificate.
    pub fn cert(&self) -> PathBuf {
        self.root.join("collector.crt")
    }

    /// The collector's own key.
    pub fn key(&self) -> PathBuf {
        self.root.join("collector.key")
    }

    /// The folder of the databases.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The database of raw frames: the evidence.
    pub fn frames_db(&self) -> PathBuf {
        self.data().join("frames.db")
    }

    /// The database of what was derived from the frames.
    pub fn index_db(&self) -> PathBuf {
        self.data().join("index.db")
    }

    /// The database of reviews.
    pub fn reviews_db(&self) -> PathBuf {
        self.data().join("reviews.db")
    }

    /// Who may review, in the form of allowed_signers.
    pub fn reviewers(&self) -> PathBuf {
        self.root.join("reviewers")
    }

    /// The database of alarms and of what people did.
    pub fn desk_db(&self) -> PathBuf {
        self.data().join("desk.db")
    }

    /// The folder of one-time tokens.
    pub fn tokens(&self) -> PathBuf {
        self.root.join("tokens")
    }

    /// The folder with a file for each retired host, named by its id.
    pub fn retired(&self) -> PathBuf {
        self.root.join("retired")
    }

    /// Whether a host is known to be retired. Where that cannot be told it is not: its silence is still one.
    pub fn is_retired(&self, host_id: &str) -> bool {
        self.retirement(host_id).unwrap_or(false)
    }

    /// Whether a host is to be refused: it is retired, or that cannot be told.
    pub fn is_refused(&self, host_id: &str) -> bool {
        self.retirement(host_id).unwrap_or_else(|error| {
            // Every host calls again and again.
            static SAID: Once = Once::new();
            let path = self.retired();
            SAID.call_once(|| {
                tracing::error!(
                    path = %path.display(), %error,
                    "it cannot be told which hosts are retired, so all are refused; the folder must belong to the user of this service"
                );
            });
            true
        })
    }

    fn retirement(&self, host_id: &str) -> std::io::Result<bool> {
        // An id is a UUID; nothing that could lead elsewhere gets into a certificate.
        if host_id.contains('/') {
            return Ok(false);
        }
        self.retired().join(host_id).try_exists()
    }

    /// The key of the transparency log.
    pub fn log_key(&self) -> PathBuf {
        self.root.join("log.key")
    }

    /// The folder of the transparency log.
    pub fn log(&self) -> PathBuf {
        self.data().join("log")
    }

    /// Reads and checks `collector.toml`.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        if !self.root.is_dir() {
            bail!("{} is not a folder; make it with: breakglass-collector init --dir {0}", self.root.display());
        }
        let path = self.config();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; a new collector is made with: breakglass-collector init --dir {}",
                path.display(),
                self.root.display()
            )
        })?;
        let settings: Settings = toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        if !(1..=HOST_MINUTES_MAX).contains(&settings.enrol.host_minutes) {
            bail!("{}: enrol.host_minutes must be from 1 to {HOST_MINUTES_MAX}", path.display());
        }
        Ok(settings)
    }

    /// Takes the folder's lock, so that only one process writes its databases. Held as long as the file is open.
    pub fn lock(&self) -> anyhow::Result<File> {
        let data = self.data();
        let owner = Owner::of(&self.root)?;
        owner.create_private_dir(&data)?;
        let lock = take_lock(&data)?;
        owner.take(&data.join(LOCK))?;
        Ok(lock)
    }
}

/// The file of [`take_lock`].
const LOCK: &str = "lock";

/// Takes the lock of a folder, so that only one process uses it. Held as long as the file is open.
pub fn take_lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {} for writing", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another breakglass-collector is using {}; stop it first", dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(config: &str) -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::write(layout.config(), config).unwrap();
        (dir, layout)
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let (_dir, layout) = folder_with("name = \"c\"\nlisten = \"127.0.0.1:1\"\nlissten = 2\n");
        let message = format!("{:#}", layout.settings().unwrap_err());
        assert!(
            message.contains("collector.toml") && message.contains("lissten") && message.contains("line 3"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_folder_says_how_to_make_one() {
        let layout = Layout::new(Path::new("/nonexistent/breakglass"));
        let message = format!("{:#}", layout.settings().unwrap_err());
        assert!(message.contains("init --dir /nonexistent/breakglass"), "{message}");
    }

    #[test]
    fn where_it_cannot_be_told_who_is_retired_all_are_refused_and_all_are_watched() {
        let (dir, layout) = folder_with("");
        assert!(!layout.is_refused("h") && !layout.is_retired("h"));
        std::fs::create_dir(layout.retired()).unwrap();
        std::fs::write(layout.retired().join("h"), "").unwrap();
        assert!(layout.is_refused("h") && layout.is_retired("h") && !layout.is_refused("i"));
        // What root may look into anyway is no test; what is no folder nobody can.
        std::fs::remove_dir_all(layout.retired()).unwrap();
        std::fs::write(dir.path().join("retired"), "").unwrap();
        assert!(layout.is_refused("h") && !layout.is_retired("h"));
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let (_dir, layout) = folder_with("");
        let held = layout.lock().unwrap();
        assert!(layout.lock().unwrap_err().to_string().contains("another breakglass-collector"));
        drop(held);
        layout.lock().unwrap();
    }
}
