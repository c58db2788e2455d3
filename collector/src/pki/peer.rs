//! Who holds a certificate.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;

const SCHEME: &str = "breakglass://";

/// What a certificate's holder may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// This server.
    Collector,
    /// The agent of one host.
    Host,
    /// Breaks the glass; sees their own sessions.
    Operator,
    /// Sees every session.
    Reviewer,
    /// Sees every session and manages the collector.
    Admin,
}

impl Role {
    const ALL: [Role; 5] = [Role::Collector, Role::Host, Role::Operator, Role::Reviewer, Role::Admin];

    /// The word that stands for it in certificates.
    pub fn word(self) -> &'static str {
        match self {
            Role::Collector => "collector",
            Role::Host => "host",
            Role::Operator => "operator",
            Role::Reviewer => "reviewer",
            Role::Admin => "admin",
        }
    }

    /// Whether people have this role.
    pub fn is_person(self) -> bool {
        matches!(self, Role::Operator | Role::Reviewer | Role::Admin)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = PeerError;

    fn from_str(word: &str) -> Result<Self, PeerError> {
        Role::ALL.into_iter().find(|role| role.word() == word).ok_or_else(|| PeerError::Role(word.to_owned()))
    }
}

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What they may do.
    pub role: Role,
    /// The id of a host, the name of anybody else.
    pub name: String,
    /// The first DNS name in the certificate: the enrolled name of a host.
    pub dns: Option<String>,
}

/// Why a certificate says nothing about its holder.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Not a certificate.
    #[error("the certificate cannot be parsed: {0}")]
    Parse(String),
    /// No role, or more than one.
    #[error("the certificate names {0} breakglass:// identities instead of one")]
    Identities(usize),
    /// A role that does not exist.
    #[error("unknown role {0:?}: choose operator, reviewer or admin")]
    Role(String),
    /// `breakglass://role` without a name.
    #[error("the identity {0:?} names nobody")]
    Nobody(String),
}

impl Peer {
    /// Reads the holder from a DER certificate. The chain must have been verified already.
    pub fn from_der(der: &[u8]) -> Result<Self, PeerError> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|e| PeerError::Parse(e.to_string()))?;
        let extension = cert.subject_alternative_name().map_err(|e| PeerError::Parse(e.to_string()))?;
        let names = extension.map(|e| e.value.general_names.as_slice()).unwrap_or_default();
        let mut identities = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        });
        let (Some(identity), 0) = (identities.next(), identities.count()) else {
            let found = names.iter().filter(|n| matches!(n, GeneralName::URI(u) if u.starts_with(SCHEME))).count();
            return Err(PeerError::Identities(found));
        };
        let (role, name) = identity.split_once('/').ok_or_else(|| PeerError::Nobody(identity.to_owned()))?;
        if name.is_empty() {
            return Err(PeerError::Nobody(identity.to_owned()));
        }
        let dns = names.iter().find_map(|n| match n {
            GeneralName::DNSName(dns) => Some((*dns).to_owned()),
            _ => None,
        });
        Ok(Self { role: role.parse()?, name: name.to_owned(), dns })
    }

    /// `breakglass://ROLE/NAME`.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{self}")
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn with_uris(uris: &[&str]) -> Result<Peer, PeerError> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        Peer::from_der(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn exactly_one_identity_is_needed() {
        assert!(matches!(with_uris(&["https://example.org"]), Err(PeerError::Identities(0))));
        assert!(matches!(with_uris(&["breakglass://admin/a", "breakglass://host/b"]), Err(PeerError::Identities(2))));
        let peer = with_uris(&["https://example.org", "breakglass://admin/a"]).unwrap();
        assert_eq!(peer.to_string(), "admin/a");
    }

    #[test]
    fn unknown_roles_and_empty_names_are_refused() {
        assert!(matches!(with_uris(&["breakglass://root/a"]), Err(PeerError::Role(_))));
        assert!(matches!(with_uris(&["breakglass://admin/"]), Err(PeerError::Nobody(_))));
        assert!(matches!(with_uris(&["breakglass://admin"]), Err(PeerError::Nobody(_))));
    }
}
