//! The person's configuration: one TOML file, looked for in `--config`, `BREAKGLASS_CONFIG` and
//! `~/.config/breakglass/config.toml`, in this order. Unknown keys are refused; an error names file, line and key.
//! Relative paths are relative to the file; `~/` is the home folder.
//!
//! ```toml
//! [collector]
//! url = "https://collector.example.org:7444"
//! server_name = "collector"
//! ca = "ca.crt"
//! cert = "person.crt"
//! key = "person.key"
//!
//! [operator]
//! identity = "~/.ssh/id_ed25519_sk"   # signs, and logs in
//! name = "alice@example.org"          # the principal in the hosts' allowed_signers
//! ca = "ca.crt"                       # checks hosts; collector.ca where left out
//! fast_key_exchange = true            # false: ssh's own configuration decides
//!
//! [hosts.web1]                        # web1 is the name in the host's certificate
//! address = "10.0.0.5:7443"           # or: socket = "/run/breakglass/control.sock"
//! ssh = "10.0.0.5:22"                 # address and the host's own ssh port where left out
//! id = "0b5e9a52-…"                   # for breakglass prepare
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Environment variable that names the file.
pub const VARIABLE: &str = "BREAKGLASS_CONFIG";

/// Everything that can be set.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How to reach the collector.
    pub collector: Option<Collector>,
    /// The person as an operator.
    pub operator: Operator,
    /// How to reach hosts, by their names.
    pub hosts: BTreeMap<String, Host>,
}

/// How to reach the collector.
#[derive(Clone, Debug, Deserialize, PartialEq)]
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

/// The person as an operator.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Operator {
    /// SSH key that signs and logs in: a private key, or a public one whose private half is in ssh-agent.
    pub identity: Option<PathBuf>,
    /// Principal in the hosts' allowed_signers.
    pub name: Option<String>,
    /// The private CA's certificate, PEM, that hosts are checked against; the collector's where absent.
    pub ca: Option<PathBuf>,
    /// Whether the login prefers a fast key exchange to the client's own choice.
    pub fast_key_exchange: bool,
}

impl Default for Operator {
    fn default() -> Self {
        Self { identity: None, name: None, ca: None, fast_key_exchange: true }
    }
}

/// How to reach a host.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// `NAME:PORT` or `IP:PORT` of the agent.
    pub address: Option<String>,
    /// The agent's Unix socket, on the host itself.
    pub socket: Option<PathBuf>,
    /// `NAME:PORT` or `NAME` of sshd.
    pub ssh: Option<String>,
    /// The host's id, for grants that are prepared while it cannot be asked.
    pub id: Option<String>,
}

fn default_server_name() -> String {
    "collector".to_owned()
}

impl Config {
    /// Reads the named file, or the one at the usual place if there is one.
    pub fn load(named: Option<&Path>) -> anyhow::Result<Self> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let usual =
            || home.as_ref().map(|home| home.join(".config/breakglass/config.toml")).filter(|path| path.exists());
        let variable = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let Some(path) = named.map(Path::to_owned).or_else(variable).or_else(usual) else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        Self::parse(&path, &text, home.as_deref())
    }

    /// Checks a text. `path` is for messages and for relative paths, `home` for `~/`.
    pub fn parse(path: &Path, text: &str, home: Option<&Path>) -> anyhow::Result<Self> {
        let mut config: Self =
            toml::from_str(text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.to_string().trim_end()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.paths().into_iter().for_each(|file| *file = resolve(file, folder, home));
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths: Vec<&mut PathBuf> = Vec::new();
        if let Some(collector) = &mut self.collector {
            paths.extend([&mut collector.ca, &mut collector.cert, &mut collector.key]);
        }
        paths.extend(&mut self.operator.identity);
        paths.extend(&mut self.operator.ca);
        paths.extend(self.hosts.values_mut().filter_map(|host| host.socket.as_mut()));
        paths
    }

    fn check(&self) -> anyhow::Result<()> {
        if let Some(collector) = &self.collector
            && !collector.url.starts_with("https://")
        {
            bail!("collector.url: {:?} must begin with https://", collector.url);
        }
        for (name, host) in &self.hosts {
            // With its id alone a host can be prepared for.
            let reached = usize::from(host.address.is_some()) + usize::from(host.socket.is_some());
            if reached > 1 || (reached == 0 && host.id.is_none()) {
                bail!("hosts.{name}: set either address or socket");
            }
        }
        Ok(())
    }
}

fn resolve(file: &Path, folder: &Path, home: Option<&Path>) -> PathBuf {
    match (file.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => folder.join(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/bg/config.toml"), text, Some(Path::new("/home/alice")))
            .map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn everything_set() {
        let config = parse(
            "[collector]\nurl = \"https://127.0.0.1:7444\"\nca = \"ca.crt\"\ncert = \"/p/person.crt\"\nkey = \"person.key\"\n\
             [operator]\nidentity = \"~/.ssh/id_ed25519\"\nname = \"alice@example.org\"\n\
             [hosts.web1]\naddress = \"10.0.0.5:7443\"\nssh = \"10.0.0.5:22\"\n\
             [hosts.\"db.example.org\"]\nsocket = \"/run/breakglass/control.sock\"\n",
        )
        .unwrap();
        let collector = config.collector.unwrap();
        assert_eq!(collector.server_name, "collector");
        assert_eq!(collector.ca, Path::new("/etc/bg/ca.crt"));
        assert_eq!(collector.cert, Path::new("/p/person.crt"));
        assert_eq!(config.operator.identity.unwrap(), Path::new("/home/alice/.ssh/id_ed25519"));
        assert_eq!(config.hosts.len(), 2);
    }

    #[test]
    fn nothing_set() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_name_file_and_key() {
        for (text, expected) in [
            ("[operator]\nidentty = \"x\"\n", "identty"),
            ("[colector]\n", "colector"),
            ("[collector]\nurl = \"http://x\"\nca = \"\"\ncert = \"\"\nkey = \"\"\n", "collector.url"),
            ("[hosts.web1]\n", "hosts.web1"),
            ("[hosts.web1]\naddress = \"a:1\"\nsocket = \"/s\"\n", "hosts.web1"),
            ("[hosts.web1]\nport = 7\n", "port"),
            ("[operator\n", "line 1"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(expected) && message.contains("/etc/bg/config.toml"), "{text}: {message}");
        }
    }
}
