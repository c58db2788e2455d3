//! The agent's one TOML file. Unknown keys are refused; an error names file, line and key.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    grant::{
        policy::{Rules, TicketPattern},
        quorum::COSIGNATURES_MAX,
    },
    notice::settings::Notices,
    regular,
};

/// Where the file is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/breakglass/agent.toml";

/// Longest session that a configuration may allow.
pub const TTL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Longest window of a prepared grant that a configuration may allow.
pub const PREPARED_LIMIT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Longest configuration, bytes.
const SIZE_LIMIT: u64 = 1 << 20;

/// What lifetimes are counted in: less than one is none.
const SECOND: Duration = Duration::from_secs(1);

/// Most people whose signatures can be asked for: one asks and the others consent.
const SIGNERS_MAX: usize = COSIGNATURES_MAX + 1;

/// Everything that can be set. Every section and key has a default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This machine.
    pub host: Host,
    /// The emergency account.
    pub account: Account,
    /// Who may break the glass, and for how long.
    pub grant: Grant,
    /// Where operators reach the agent.
    pub control: Control,
    /// Where records go; absent: they stay in the spool.
    pub collector: Option<Collector>,
    /// What is kept until the collector has it.
    pub spool: Spool,
    /// The kernel programs.
    pub kernel: Kernel,
    /// What is compared before and after a session.
    pub aftermath: Aftermath,
    /// Who is told by the host itself.
    pub notice: Notices,
}

/// This machine.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// The name that operators use; the machine's host name if empty.
    pub name: String,
    /// Folder with `ca.crt`, `host.crt`, `host.key` and `host-id`, as the collector's `enroll host` made it.
    pub enrolment: PathBuf,
    /// Folder for what must outlive a reboot: spool, grant intent, host id.
    pub state: PathBuf,
    /// Folder for what must not: the control socket, the key source.
    pub runtime: PathBuf,
}

/// The emergency account.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Account {
    /// Its login name. It must exist and must not be root.
    pub name: String,
    /// The shadow file that holds it.
    pub shadow: PathBuf,
    /// The port that operators are told to log in at.
    pub ssh_port: u16,
    /// Folder with sshd's `ssh_host_*_key.pub`, handed to operators with the grant.
    pub ssh_host_keys: PathBuf,
    /// Whether those keys are made anew after each session, whose root could read them. Everybody who knows the host by them is asked to
    /// accept the new ones then.
    pub renew_ssh_host_keys: bool,
}

/// Who may break the glass, and for how long.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Grant {
    /// OpenSSH allowed_signers file, `ssh-keygen(1)`.
    pub allowed_signers: PathBuf,
    /// Longest session that may be asked for.
    #[serde(deserialize_with = "duration")]
    pub max_ttl: Duration,
    /// Length of a session for which none is asked.
    #[serde(deserialize_with = "duration")]
    pub default_ttl: Duration,
    /// Patterns of principals who may open, as in allowed_signers; empty: everybody who is listed there.
    pub operators: Vec<String>,
    /// Take FIDO keys only.
    pub hardware_only: bool,
    /// Take only FIDO keys that checked a PIN or a fingerprint.
    pub user_verification: bool,
    /// Regular expression that the whole ticket must match; empty: no ticket is asked for.
    pub ticket_pattern: String,
    /// Networks that requests may come from; empty: any. The Unix socket is always served.
    pub sources: Vec<IpNet>,
    /// File with revoked keys; absent: none.
    pub revoked_keys: Option<PathBuf>,
    /// How many distinct people must sign.
    pub required_signers: usize,
    /// Take only keys, and certificates, whose whole time of validity is at most this; absent: also those that never end.
    #[serde(deserialize_with = "some_duration")]
    pub max_key_lifetime: Option<Duration>,
    /// Longest window of a grant that was signed ahead and is carried by hand; zero: take none.
    #[serde(deserialize_with = "duration")]
    pub prepared_max: Duration,
}

/// Where operators reach the agent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Unix socket.
    pub socket: PathBuf,
    /// TCP address for TLS; absent: none. Port 0 takes a free one and writes it to `control.addr` in the runtime folder.
    pub listen: Option<SocketAddr>,
}

/// Where records go.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Collector {
    /// Addresses, tried in turn: `https://name:port`.
    pub urls: Vec<String>,
    /// Name that the collector's certificate must carry.
    #[serde(default = "default_server_name")]
    pub server_name: String,
    /// Whether reviewers and administrators may, by way of the collector, end a session and have the rules read anew.
    #[serde(default = "yes")]
    pub orders: bool,
}

/// What is kept until the collector has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// Bound of all segments together, bytes.
    #[serde(deserialize_with = "size")]
    pub max_bytes: u64,
    /// Size at which a segment is ended, bytes.
    #[serde(deserialize_with = "size")]
    pub segment_bytes: u64,
}

/// The kernel programs.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// Folder on a bpffs for maps and links.
    pub pins: PathBuf,
    /// The glass is not broken below this tier.
    pub minimum_tier: Tier,
    /// No more of the kernel is used than this tier, whatever it allows: for comparing tiers, and around a kernel whose better ones
    /// misbehave. A trade of evidence for nothing otherwise.
    pub maximum_tier: Tier,
    /// What becomes of a program that the emergency account starts while no session is open. It is an alert in any case.
    pub ungranted: Ungranted,
    /// What becomes of a program of a session that cannot be recorded for certain.
    pub unrecorded: Unrecorded,
    /// What becomes of a program of a session that wants or uses a ring of `io_uring`: what is done through one makes no system call of
    /// its own, so that of files and connections only the ring would be on record.
    pub io_uring: Unrecorded,
    /// Ring for what must never be lost, bytes; a power of two of at least a page.
    #[serde(deserialize_with = "size")]
    pub audit_ring: u64,
    /// Ring for what happens beside the session, bytes.
    #[serde(deserialize_with = "size")]
    pub witness_ring: u64,
    /// Ring for terminal output, bytes.
    #[serde(deserialize_with = "size")]
    pub bulk_ring: u64,
}

/// What becomes of what the record would not show, or not whole.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Unrecorded {
    /// It does not run.
    Deny,
    /// It runs, and the record says what it can.
    Record,
}

/// What is compared before and after a session.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Aftermath {
    /// Whether the local file systems are walked for files with special rights, at rest and after each session. It takes about a
    /// second for a hundred thousand files; without it a setuid copy of a shell is not listed, and every review says so.
    pub walk: bool,
}

/// What becomes of a program that runs without a grant.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Ungranted {
    /// It runs, and is recorded.
    Alert,
    /// It is killed before its first instruction, and recorded.
    Kill,
}

/// How much the running kernel allows.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Nothing loads: sessions are not recorded by the kernel.
    None,
    /// Tracepoints only.
    Basic,
    /// Tracepoints and function exits.
    Trace,
    /// Everything, the security hooks included.
    Full,
}

impl Tier {
    /// The word used in records and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Basic => "basic",
            Self::Trace => "trace",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Host {
    fn default() -> Self {
        Self {
            name: String::new(),
            enrolment: "/etc/breakglass/host".into(),
            state: "/var/lib/breakglass".into(),
            runtime: "/run/breakglass".into(),
        }
    }
}

impl Default for Account {
    fn default() -> Self {
        Self {
            name: "breakglass".into(),
            shadow: "/etc/shadow".into(),
            ssh_port: 22,
            ssh_host_keys: "/etc/ssh".into(),
            renew_ssh_host_keys: false,
        }
    }
}

impl Default for Grant {
    fn default() -> Self {
        Self {
            allowed_signers: "/etc/breakglass/allowed_signers".into(),
            max_ttl: Duration::from_secs(3600),
            default_ttl: Duration::from_secs(1800),
            operators: Vec::new(),
            hardware_only: false,
            user_verification: false,
            ticket_pattern: String::new(),
            sources: Vec::new(),
            revoked_keys: None,
            required_signers: 1,
            max_key_lifetime: None,
            prepared_max: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: "/run/breakglass/control.sock".into(), listen: None }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self { max_bytes: 1 << 30, segment_bytes: 8 << 20 }
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            pins: "/sys/fs/bpf/breakglass".into(),
            minimum_tier: Tier::Basic,
            maximum_tier: Tier::Full,
            ungranted: Ungranted::Alert,
            unrecorded: Unrecorded::Deny,
            io_uring: Unrecorded::Deny,
            audit_ring: 16 << 20,
            witness_ring: 4 << 20,
            bulk_ring: 16 << 20,
        }
    }
}

impl Grant {
    /// The rules in the form in which proofs are held against them.
    pub fn rules(&self) -> Rules {
        Rules {
            operators: self.operators.clone(),
            hardware_only: self.hardware_only,
            user_verification: self.user_verification,
            // A pattern that cannot be read was refused with the configuration.
            ticket: Some(&self.ticket_pattern).filter(|p| !p.is_empty()).and_then(|p| TicketPattern::new(p).ok()),
            sources: self.sources.clone(),
            required_signers: self.required_signers,
            max_key_lifetime: self.max_key_lifetime,
            prepared_max: self.prepared_max,
        }
    }
}

impl Default for Aftermath {
    fn default() -> Self {
        Self { walk: true }
    }
}

fn yes() -> bool {
    true
}

/// The name that a collector has if nothing else is said.
pub fn default_server_name() -> String {
    "collector".into()
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not understood; the message carries line, column and key.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A value makes no sense.
    #[error("{path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Section and key.
        key: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = regular::read_to_string(path, SIZE_LIMIT)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks a text; `path` is only for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string().trim_end().to_owned() })?;
        config.check().map_err(|(key, message)| ConfigError::Value { path: path.to_owned(), key, message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.account.name.is_empty() || self.account.name == "root" {
            return Err(("account.name", "must name an account of its own, not root".into()));
        }
        // Sessions are counted in whole seconds.
        if self.grant.max_ttl > TTL_LIMIT || self.grant.max_ttl < SECOND {
            return Err(("grant.max_ttl", "must be at least 1s and at most 24h".into()));
        }
        if self.grant.default_ttl > self.grant.max_ttl || self.grant.default_ttl < SECOND {
            return Err(("grant.default_ttl", "must be at least 1s and at most grant.max_ttl".into()));
        }
        if let Err(why) = TicketPattern::new(&self.grant.ticket_pattern) {
            return Err(("grant.ticket_pattern", why));
        }
        if !(1..=SIGNERS_MAX).contains(&self.grant.required_signers) {
            return Err(("grant.required_signers", format!("must be from 1 to {SIGNERS_MAX}")));
        }
        if self.grant.max_key_lifetime.is_some_and(|longest| longest < SECOND) {
            return Err((
                "grant.max_key_lifetime",
                "must be at least 1s; leave it out to take keys that never end".into(),
            ));
        }
        if self.grant.prepared_max > PREPARED_LIMIT
            || (!self.grant.prepared_max.is_zero() && self.grant.prepared_max < SECOND)
        {
            return Err((
                "grant.prepared_max",
                "must be at least 1s and at most 90days, or 0s to take no prepared grants".into(),
            ));
        }
        self.notice.check()?;
        if let Some(collector) = &self.collector {
            if collector.urls.is_empty() {
                return Err(("collector.urls", "must name at least one address, or leave out the section".into()));
            }
            if let Some(url) = collector.urls.iter().find(|url| !url.starts_with("https://")) {
                return Err(("collector.urls", format!("{url:?} must begin with https://")));
            }
            if let Some(url) = collector.urls.iter().find(|url| !names_a_host(url)) {
                return Err(("collector.urls", format!("{url:?} must be of the form https://name:port")));
            }
            if collector.server_name.is_empty() {
                return Err(("collector.server_name", "must be a name; leave it out for \"collector\"".into()));
            }
        }
        if self.account.ssh_port == 0 {
            return Err(("account.ssh_port", "must be the port of this host's sshd, 22 for most".into()));
        }
        self.check_spool()?;
        if self.kernel.minimum_tier > self.kernel.maximum_tier {
            let message = format!(
                "{} is above kernel.maximum_tier, {}, so that the glass could never be broken; lower it, or raise the other",
                self.kernel.minimum_tier, self.kernel.maximum_tier
            );
            return Err(("kernel.minimum_tier", message));
        }
        for (key, ring) in [
            ("kernel.audit_ring", self.kernel.audit_ring),
            ("kernel.witness_ring", self.kernel.witness_ring),
            ("kernel.bulk_ring", self.kernel.bulk_ring),
        ] {
            if !ring.is_power_of_two() || !((1 << 16)..=(1 << 30)).contains(&ring) {
                return Err((key, "must be a power of two from 64KiB to 1GiB".into()));
            }
        }
        Ok(())
    }

    fn check_spool(&self) -> Result<(), (&'static str, String)> {
        if self.spool.segment_bytes < 1 << 20 {
            return Err(("spool.segment_bytes", "must be 1MiB or more".into()));
        }
        // A segment so large that four cannot be counted does not fit either.
        if self.spool.segment_bytes.checked_mul(4).is_none_or(|four| self.spool.max_bytes < four) {
            return Err((
                "spool.max_bytes",
                "must hold at least four segments of spool.segment_bytes; raise it or lower that".into(),
            ));
        }
        Ok(())
    }
}

fn names_a_host(url: &str) -> bool {
    url.parse::<hyper::Uri>().is_ok_and(|url| url.host().is_some_and(|host| !host.is_empty()))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|e| de::Error::custom(format!("{text:?} is not a duration such as \"30m\": {e}")))
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is not a size such as \"64KiB\" or \"16MiB\"")))
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests;
