//! The private certificate authority: one per collector, ECDSA P-256, kept in files.
//!
//! A certificate's single `breakglass://ROLE/NAME` URI says who its holder is ([`Peer`]); nothing else in it grants anything.

mod files;
mod own;
mod peer;

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

pub use files::{Owner, create_private_dir, read_private_key, write_new, write_private};
pub use own::{end_of, names_of, reminder};
pub use peer::{Peer, PeerError, Role};

use crate::settings::Layout;

/// How long the CA is valid.
const CA_VALIDITY: Duration = Duration::days(10 * 365);
/// How long a leaf is valid that was made here and carried by hand. Agents renew theirs, to shorter ones.
const LEAF_VALIDITY: Duration = Duration::days(365);
/// Certificates are valid from a little before they are made, for peers whose clocks are behind.
const CLOCK_SLACK: Duration = Duration::hours(1);
/// Longest name of a host or a person, bytes: the limit of an X.509 common name.
const NAME_MAX: usize = 64;

/// A certificate and its key, PEM.
#[derive(Debug)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
}

/// The CA with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new CA; returns it with what has to be kept.
    pub fn create() -> anyhow::Result<(Self, Issued)> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot generate the CA key")?;
        let mut params = dated("Breakglass private CA", CA_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).context("cannot sign the CA certificate")?;
        let issued = Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() };
        Ok((Self { issuer: Issuer::new(params, key) }, issued))
    }

    /// Loads the CA of a collector's folder.
    pub fn load(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.ca_cert();
        let cert = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let key_path = layout.ca_key();
        let key = KeyPair::from_pem(&read_private_key(&key_path)?)
            .with_context(|| format!("{} is not a private key", key_path.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&cert, key)
            .with_context(|| format!("{} is not a CA certificate", path.display()))?;
        Ok(Self { issuer })
    }

    /// A certificate for the collector itself, good for `name` and every one of `sans` (DNS names or addresses).
    pub fn issue_collector(&self, name: &str, sans: &[String]) -> anyhow::Result<Issued> {
        let peer = Peer { role: Role::Collector, name: name.to_owned(), dns: None };
        self.issue(&peer, own::alternatives(name, sans)?, true)
    }

    /// A certificate for the agent of host `name`; `id` is the host's id.
    pub fn issue_host(&self, id: &str, name: &str) -> anyhow::Result<Issued> {
        check_host_name(name)?;
        self.issue(&Peer { role: Role::Host, name: id.to_owned(), dns: None }, vec![dns(name)?], true)
    }

    /// A certificate for the agent of host `name`, whose key stays where it is. PEM.
    pub fn certify_host(
        &self,
        id: &str,
        name: &str,
        request: HostRequest,
        validity: Duration,
    ) -> anyhow::Result<String> {
        check_host_name(name)?;
        let peer = Peer { role: Role::Host, name: id.to_owned(), dns: None };
        let params = params_for(&peer, vec![dns(name)?], true, validity)?;
        let request = CertificateSigningRequestParams { params, public_key: request.public_key };
        let cert = request.signed_by(&self.issuer).context("cannot sign the certificate")?;
        Ok(cert.pem())
    }

    /// A certificate for a person. `role` must be one that people have.
    pub fn issue_person(&self, role: Role, name: &str) -> anyhow::Result<Issued> {
        if !role.is_person() {
            bail!("{role} is not a role of a person: choose operator, reviewer or admin");
        }
        self.issue(&Peer { role, name: name.to_owned(), dns: None }, Vec::new(), false)
    }

    fn issue(&self, peer: &Peer, sans: Vec<SanType>, server: bool) -> anyhow::Result<Issued> {
        let params = params_for(peer, sans, server, LEAF_VALIDITY)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot generate a key")?;
        let cert = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("cannot sign a certificate for {}", peer.uri()))?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// A certificate request whose signature fits: whoever made it holds the key. Nothing else of it is ever used.
#[derive(Debug)]
pub struct HostRequest {
    public_key: PublicKey,
}

impl HostRequest {
    /// Parses PKCS #10, DER.
    pub fn parse(der: &[u8]) -> anyhow::Result<Self> {
        let request = CertificateSigningRequestParams::from_der(&der.into())
            .context("this is not a certificate request, or its signature does not fit")?;
        let public_key = request.public_key;
        if public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            bail!("the certificate request must be for an ECDSA P-256 key");
        }
        Ok(Self { public_key })
    }

    /// The key, as it is in the certificate.
    pub fn public_key(&self) -> &[u8] {
        self.public_key.der_bytes()
    }
}

fn params_for(
    peer: &Peer,
    mut sans: Vec<SanType>,
    server: bool,
    validity: Duration,
) -> anyhow::Result<CertificateParams> {
    check_name(&peer.name)?;
    let uri = peer.uri();
    sans.push(SanType::URI(uri.clone().try_into().with_context(|| format!("{uri} cannot stand in a certificate"))?));
    let mut params = dated(&peer.name, validity);
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The first certificate of a PEM file, DER.
pub(crate) fn certificate_der(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificate = CertificateDer::from_pem_slice(&pem);
    Ok(certificate.with_context(|| format!("{} is not a PEM certificate", path.display()))?.to_vec())
}

fn dated(common_name: &str, validity: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    // RFC 5280, 4.1.2.2: positive; a random UUID is unique enough without a register.
    let mut serial = *uuid::Uuid::new_v4().as_bytes();
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + validity;
    params
}

fn dns(name: &str) -> anyhow::Result<SanType> {
    Ok(SanType::DnsName(name.to_owned().try_into().with_context(|| format!("{name:?} is not a DNS name"))?))
}

/// Names go into URIs, file names and tables as they are, so only characters without a meaning there.
fn check_name(name: &str) -> anyhow::Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) {
        bail!("the name {name:?} is not allowed: 1 to {NAME_MAX} letters, digits and . _ - @ +");
    }
    Ok(())
}

pub(crate) fn check_host_name(name: &str) -> anyhow::Result<()> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() > NAME_MAX || !name.split('.').all(label) {
        bail!("{name:?} is not a host name: letters, digits and hyphens, dots between, at most {NAME_MAX} characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    fn der(issued: &Issued) -> Vec<u8> {
        parse_x509_pem(issued.cert_pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn what_is_issued_is_read_back_as_the_same_peer() {
        let (ca, _) = Authority::create().unwrap();
        let host =
            Peer::from_der(&der(&ca.issue_host("5f0c9c9e-0000-4000-8000-000000000000", "web1").unwrap())).unwrap();
        assert_eq!((host.role, host.name.as_str()), (Role::Host, "5f0c9c9e-0000-4000-8000-000000000000"));
        assert_eq!(host.dns.as_deref(), Some("web1"));
        for role in [Role::Operator, Role::Reviewer, Role::Admin] {
            let peer = Peer::from_der(&der(&ca.issue_person(role, "alice@example.org").unwrap())).unwrap();
            assert_eq!((peer.role, peer.name.as_str()), (role, "alice@example.org"));
        }
    }

    #[test]
    fn names_that_would_mean_something_elsewhere_are_refused() {
        let (ca, _) = Authority::create().unwrap();
        let long = "a".repeat(NAME_MAX + 1);
        for name in ["", "a/b", "a b", "../x", "a\nb", "é", long.as_str()] {
            assert!(ca.issue_person(Role::Reviewer, name).is_err(), "{name:?}");
        }
        for name in ["", "-a", "a_b", "a..b", "a@b"] {
            assert!(ca.issue_host("id", name).is_err(), "{name:?}");
        }
        assert!(ca.issue_person(Role::Host, "x").is_err());
        assert!(ca.issue_person(Role::Collector, "x").is_err());
    }

    #[test]
    fn validity_and_usages_are_as_documented() {
        let (ca, root) = Authority::create().unwrap();
        let leaf = der(&ca.issue_person(Role::Reviewer, "bob").unwrap());
        for (bytes, years, is_ca) in [(der(&root), 10, true), (leaf, 1, false)] {
            let (_, cert) = x509_parser::parse_x509_certificate(&bytes).unwrap();
            let days = (cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp()) / 86_400;
            assert_eq!(days, years * 365);
            assert_eq!(cert.is_ca(), is_ca);
            assert!(cert.raw_serial().first().unwrap() & 0x80 == 0);
        }
    }
}
