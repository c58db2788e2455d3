//! `[log]` in `collector.toml`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use hyper::Uri;
use serde::{Deserialize, Serialize};
use signed_note::Verifier;

use super::client::Witness;
use super::note::{KeyType, VerifierKey};

/// Witnesses that can be configured. Every checkpoint carries a line of each, and readers need not take more than 16.
const WITNESSES_MAX: usize = 15;

/// The transparency log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// The log's name, in every checkpoint and for ever; that of `log.key`.
    pub origin: String,
    /// Where to serve the log over HTTP. The log is kept without it as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Cosignatures that a checkpoint needs before it is served.
    pub quorum: usize,
    /// Who is asked for cosignatures.
    #[serde(rename = "witness", skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<WitnessSettings>,
}

/// A witness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessSettings {
    /// Its verifier key, `NAME+ID+BASE64`.
    pub key: String,
    /// Where `add-checkpoint` is, without that last part.
    pub url: String,
}

impl LogSettings {
    /// The witnesses, checked.
    pub fn witnesses(&self) -> anyhow::Result<Vec<Witness>> {
        ensure!(
            self.witnesses.len() <= WITNESSES_MAX,
            "[log] names {} witnesses; at most {WITNESSES_MAX} are asked",
            self.witnesses.len()
        );
        ensure!(
            self.quorum <= self.witnesses.len(),
            "[log] asks for {} cosignatures of {} witnesses: no checkpoint would ever be published",
            self.quorum,
            self.witnesses.len()
        );
        let witnesses = self.witnesses.iter().map(WitnessSettings::parse).collect::<anyhow::Result<Vec<_>>>()?;
        let mut names = BTreeSet::new();
        for witness in &witnesses {
            let name = witness.key().name();
            ensure!(names.insert(name), "[log] names the witness {name} twice");
        }
        Ok(witnesses)
    }
}

impl WitnessSettings {
    fn parse(&self) -> anyhow::Result<Witness> {
        let key: VerifierKey = self.key.parse().with_context(|| format!("[[log.witness]] key = {:?}", self.key))?;
        ensure!(
            key.kind() == KeyType::Cosignature,
            "[[log.witness]] key = {:?} is the key of a log; that of a witness is of type 0x04",
            self.key
        );
        let url: Uri = self.url.parse().with_context(|| format!("[[log.witness]] url = {:?}", self.url))?;
        let web = matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some() && url.query().is_none();
        ensure!(web, "[[log.witness]] url = {:?} is not an http:// or https:// address", self.url);
        Ok(Witness::new(key, url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::note::NoteKey;

    fn witness(name: &str, url: &str) -> WitnessSettings {
        let key = NoteKey::generate(name, KeyType::Cosignature).unwrap();
        WitnessSettings { key: key.public().to_string(), url: url.into() }
    }

    fn error(quorum: usize, witnesses: Vec<WitnessSettings>) -> String {
        let settings = LogSettings { quorum, witnesses, ..LogSettings::default() };
        settings.witnesses().err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let url = "http://127.0.0.1:1";
        assert_eq!(error(1, vec![witness("w/1", url), witness("w/2", "https://w.example/prefix/")]), "");
        assert!(error(1, vec![]).contains("no checkpoint would ever"));
        assert!(error(0, vec![witness("w/1", url), witness("w/1", url)]).contains("twice"));
        for bad in ["", "w.example", "ftp://w.example", "http://", "http://w.example/?q=1"] {
            assert!(error(0, vec![witness("w/1", bad)]).contains("url"), "{bad}");
        }
        let log = NoteKey::generate("log", KeyType::Note).unwrap().public().to_string();
        assert!(error(0, vec![WitnessSettings { key: log, url: url.into() }]).contains("0x04"));
        assert!(error(0, vec![WitnessSettings { key: "w+1+AA".into(), url: url.into() }]).contains("key"));
    }
}
