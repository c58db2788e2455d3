//! Placeholder.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// The person's configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Config {
    /// How to reach the collector.
    pub collector: Option<Collector>,
}

/// How to reach the collector.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collector {
    /// `https://name:port`.
    pub url: String,
    /// Name that the collector's certificate must carry.
    #[serde(default = "default_server_name")]
    pub server_name: String,
    /// The private CA's certificate, PEM.
    pub ca: PathBuf,
    /// The person's certificate, PEM.
    pub cert: PathBuf,
    /// The person's key, PEM.
    pub key: PathBuf,
}

fn default_server_name() -> String {
    "collector".to_owned()
}

impl Config {
    /// Reads the named file, or the one at the usual place if there is one.
    pub fn load(named: Option<&Path>) -> anyhow::Result<Self> {
        let usual = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/breakglass/config.toml"));
        let Some(path) = named.map(Path::to_owned).or_else(|| usual().filter(|path| path.exists())) else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut config: Self = toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        if let Some(collector) = &mut config.collector {
            for file in [&mut collector.ca, &mut collector.cert, &mut collector.key] {
                *file = folder.join(&*file);
            }
        }
        Ok(config)
    }
}
