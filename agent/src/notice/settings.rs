//! `[notice]` of the configuration.

use std::path::PathBuf;

use serde::Deserialize;

/// Who is told by the host itself.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Notices {
    /// Whether a line goes to the system's log, which is the journal where systemd runs.
    pub syslog: bool,
    /// Where notices are posted; absent: nowhere.
    pub webhook: Option<Hook>,
}

/// Where notices are posted.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// `https://…`.
    pub url: String,
    /// File with the secret that signs what is posted; root's alone, 16 to 1024 bytes. White space around it does not count.
    pub secret: PathBuf,
    /// File with the CA certificates (PEM) that the webhook is checked against; the system's where left out.
    pub ca: Option<PathBuf>,
}

impl Default for Notices {
    fn default() -> Self {
        Self { syslog: true, webhook: None }
    }
}

impl Notices {
    /// What is wrong, with its key.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match &self.webhook {
            Some(hook) if !hook.url.starts_with("https://") => {
                Err(("notice.webhook.url", format!("{:?} must begin with https://", hook.url)))
            }
            _ => Ok(()),
        }
    }
}
