//! The collector's own certificate: made anew for the same names, and looked at before it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, bail};
use rcgen::{KeyPair, SanType};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use super::{Authority, LEAF_VALIDITY, Peer, Role, certificate_der, check_host_name, dns, params_for};

/// How long before its end it is time for another one.
const EARLY: Duration = Duration::days(30);

impl Authority {
    /// A certificate for the collector itself as [`Self::issue_collector`] makes it, for a key that there is; PEM.
    pub fn renew_collector(&self, name: &str, sans: &[String], key_pem: &str) -> anyhow::Result<String> {
        let key = KeyPair::from_pem(key_pem).context("this is not a private key")?;
        let peer = Peer { role: Role::Collector, name: name.to_owned(), dns: None };
        let params = params_for(&peer, alternatives(name, sans)?, true, LEAF_VALIDITY)?;
        let cert = params.signed_by(&key, &self.issuer).context("cannot sign the collector's certificate")?;
        Ok(cert.pem())
    }
}

pub(super) fn alternatives(name: &str, sans: &[String]) -> anyhow::Result<Vec<SanType>> {
    check_host_name(name)?;
    let mut alternatives = vec![dns(name)?];
    for san in sans {
        alternatives.push(match san.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                check_host_name(san)?;
                dns(san)?
            }
        });
    }
    Ok(alternatives)
}

/// The DNS names and addresses that the certificate in a file is good for.
pub fn names_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let der = certificate_der(path)?;
    let (_, cert) = parse(&der, path)?;
    let extension = cert.subject_alternative_name().with_context(|| format!("{} is damaged", path.display()))?;
    let names = extension.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    Ok(names.iter().filter_map(name).collect())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
    }
}

/// When the certificate in a file ends.
pub fn end_of(path: &Path) -> anyhow::Result<OffsetDateTime> {
    let der = certificate_der(path)?;
    Ok(parse(&der, path)?.1.validity().not_after.to_datetime())
}

/// What to do about a certificate that ends then, if it is time.
pub fn reminder(end: OffsetDateTime, now: OffsetDateTime) -> Option<String> {
    let left = end - now;
    let when = match left {
        left if left >= EARLY => return None,
        left if left.is_negative() => format!("ended on {}: nobody can connect", end.date()),
        left => format!("ends on {}, in {} days: nobody can connect from then on", end.date(), left.whole_days()),
    };
    Some(format!(
        "the collector's own certificate {when}; make another one with breakglass-collector enroll collector, and restart the collector"
    ))
}

fn parse<'a>(der: &'a [u8], path: &Path) -> anyhow::Result<(&'a [u8], x509_parser::certificate::X509Certificate<'a>)> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(parsed) => Ok(parsed),
        Err(error) => bail!("{} is not a certificate: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_anew_for_the_same_names_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("collector.crt");
        let (ca, _) = Authority::create().unwrap();
        let sans = ["c.example.org", "10.0.0.1", "::1"].map(str::to_owned);
        let old = ca.issue_collector("collector", &sans).unwrap();
        std::fs::write(&path, &old.cert_pem).unwrap();
        let names = names_of(&path).unwrap();
        assert_eq!(names, ["collector", "c.example.org", "10.0.0.1", "::1"]);
        let renewed = ca.renew_collector("collector", &names[1..], &old.key_pem).unwrap();
        assert_ne!(renewed, old.cert_pem);
        std::fs::write(&path, renewed).unwrap();
        assert_eq!(names_of(&path).unwrap(), names);
        assert!(end_of(&path).unwrap() > OffsetDateTime::now_utc() + Duration::days(364));
    }

    #[test]
    fn one_is_reminded_thirty_days_before_and_ever_after() {
        let end = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        assert_eq!(reminder(end, end - EARLY), None);
        let soon = reminder(end, end - Duration::days(29)).unwrap();
        assert!(soon.contains("in 29 days") && soon.contains("enroll collector"), "{soon}");
        assert!(reminder(end, end + Duration::days(1)).unwrap().contains("ended on 2027-01-15"));
    }
}
