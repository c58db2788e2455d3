//! The witness's folder and `witness.toml`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use signed_note::Verifier;

use crate::pki::{Owner, create_private_dir};
use crate::tlog::note::{KeyType, NoteKey, VerifierKey};

/// Logs that one witness can be told of.
const LOGS_MAX: usize = 1024;

/// `witness.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The logs that are cosigned.
    #[serde(default, rename = "log", skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<KnownLog>,
}

/// A log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownLog {
    /// Its verifier key.
    pub key: String,
    /// Its origin, where that is not the key's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

impl WitnessSettings {
    /// The keys of each log, by origin. A log may have several.
    pub fn keys(&self) -> anyhow::Result<BTreeMap<String, Vec<VerifierKey>>> {
        ensure!(self.logs.len() <= LOGS_MAX, "{} logs; at most {LOGS_MAX} are witnessed", self.logs.len());
        let mut logs: BTreeMap<String, Vec<VerifierKey>> = BTreeMap::new();
        for log in &self.logs {
            let key: VerifierKey = log.key.parse().with_context(|| format!("[[log]] key = {:?}", log.key))?;
            let origin = log.origin.clone().unwrap_or_else(|| key.name().to_owned());
            let keys = logs.entry(origin).or_default();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(logs)
    }
}

/// Where everything lies below the witness's folder.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of folder `root`, which need not exist yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The settings.
    pub fn config(&self) -> PathBuf {
        self.root.join("witness.toml")
    }

    /// The private key.
    pub fn key(&self) -> PathBuf {
        self.root.join("witness.key")
    }

    /// The folder of what was cosigned.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Makes a witness called `name`.
    pub fn create(&self, name: &str, settings: &WitnessSettings) -> anyhow::Result<NoteKey> {
        for path in [self.config(), self.key(), self.state()] {
            if path.exists() {
                bail!("{} exists already: this folder holds a witness, and nothing was changed", path.display());
            }
        }
        settings.keys()?;
        let key = NoteKey::generate(name, KeyType::Cosignature)?;
        let config = toml::to_string(settings).context("cannot write the settings")?;
        create_private_dir(&self.root)?;
        let owner = Owner::of(&self.root)?;
        owner.create_private_dir(&self.state())?;
        owner.write_private(&self.key(), &key.to_secret())?;
        // Last: with this file the folder is complete.
        owner.write_new(&self.config(), &config)?;
        Ok(key)
    }

    /// Reads and checks `witness.toml`.
    pub fn settings(&self) -> anyhow::Result<WitnessSettings> {
        let path = self.config();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; a new witness is made with: breakglass-collector witness init --dir {}",
                path.display(),
                self.root.display()
            )
        })?;
        toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
    }
}
