//! Which host is meant, and how to get to it.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::config::{self, Config};

/// Where the agent of this machine listens unless configured otherwise.
const LOCAL_SOCKET: &str = "/run/breakglass/control.sock";

/// Which hosts, and how to reach one where the configuration does not say.
#[derive(Clone, Debug, Default, Args)]
pub struct TargetArgs {
    /// Names of hosts, as in their certificates and in the configuration.
    #[arg(value_name = "HOST", required_unless_present_any = ["local", "socket"])]
    pub hosts: Vec<String>,
    /// This machine, over the agent's socket at its usual place.
    #[arg(long, conflicts_with_all = ["socket", "address"])]
    pub local: bool,
    /// The agent's Unix socket.
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    pub socket: Option<PathBuf>,
    /// The agent's address, in place of the configured one.
    #[arg(long, value_name = "NAME:PORT")]
    pub address: Option<String>,
    /// CA certificate (PEM) that the host is checked against, in place of the configured one.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// How to reach the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// A Unix socket on this machine.
    Socket(PathBuf),
    /// TLS, checked against a CA; the certificate must carry the host's name.
    Tls {
        /// `NAME:PORT`.
        address: String,
        /// The CA's certificate.
        ca: PathBuf,
    },
}

/// A host to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name, for messages and for the certificate.
    pub name: String,
    /// Whether somebody gave it that name.
    pub named: bool,
    /// Where its agent is.
    pub door: Door,
    /// Where its sshd is.
    pub ssh_host: String,
    /// At which port, where configured; otherwise the agent says.
    pub ssh_port: Option<u16>,
}

impl TargetArgs {
    /// Puts arguments and configuration together; at least one host.
    pub fn resolve_all(&self, config: &Config) -> Result<Vec<Target>, Failure> {
        if self.hosts.is_empty() {
            return Ok(vec![self.resolve(None, config)?]);
        }
        if self.hosts.len() > 1 && (self.local || self.socket.is_some() || self.address.is_some()) {
            return Err(Failure::Usage(
                "--local, --socket and --address are for one host; several are reached as the configuration says"
                    .into(),
            ));
        }
        let mut targets: Vec<Target> = Vec::new();
        for name in &self.hosts {
            // Named twice is meant once.
            if targets.iter().all(|other| other.name != *name) {
                targets.push(self.resolve(Some(name), config)?);
            }
        }
        Ok(targets)
    }

    fn resolve(&self, named: Option<&str>, config: &Config) -> Result<Target, Failure> {
        let configured = named.and_then(|name| config.hosts.get(name));
        let name = named.unwrap_or("this host").to_owned();
        let door = self.door(&name, configured, config)?;
        let (ssh_host, ssh_port) = match (configured.and_then(|host| host.ssh.as_deref()), &door) {
            (Some(ssh), _) => split_port(ssh)?,
            (None, Door::Socket(_)) => ("127.0.0.1".to_owned(), None),
            (None, Door::Tls { address, .. }) => (split_port(address)?.0, None),
        };
        if ssh_host.is_empty() || ssh_host.starts_with('-') {
            return Err(Failure::Usage(format!("{ssh_host:?} cannot be the host to log in to")));
        }
        Ok(Target { name, named: named.is_some(), door, ssh_host, ssh_port })
    }

    fn door(&self, name: &str, configured: Option<&config::Host>, config: &Config) -> Result<Door, Failure> {
        if self.local {
            return Ok(Door::Socket(LOCAL_SOCKET.into()));
        }
        let socket = self.socket.as_ref().or_else(|| configured.and_then(|host| host.socket.as_ref()));
        if let (Some(socket), None) = (socket, &self.address) {
            return Ok(Door::Socket(socket.clone()));
        }
        let address = self.address.as_ref().or_else(|| configured.and_then(|host| host.address.as_ref()));
        let Some(address) = address else {
            return Err(Failure::Usage(format!(
                "no address is known for {name:?}: add [hosts.{name}] to the configuration, or give --address NAME:PORT"
            )));
        };
        let ca = self.ca.as_ref().or(config.operator.ca.as_ref());
        let ca = ca.or_else(|| config.collector.as_ref().map(|collector| &collector.ca)).ok_or_else(|| {
            Failure::Usage(
                "no CA is known to check the host with: set operator.ca in the configuration, or give --ca".into(),
            )
        })?;
        Ok(Door::Tls { address: address.clone(), ca: ca.clone() })
    }
}

/// `NAME`, `NAME:PORT`, `1.2.3.4:PORT`, `[2001:db8::1]:PORT` or a bare IPv6 address.
fn split_port(text: &str) -> Result<(String, Option<u16>), Failure> {
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if text.parse::<std::net::Ipv6Addr>().is_ok() || text.ends_with(']') || !text.contains(':') {
        return Ok((bare(text), None));
    }
    match text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) => Ok((bare(host), Some(port))),
        None => Err(Failure::Usage(format!("{text:?} is not of the form NAME:PORT"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse(
            "/etc/bg/config.toml".as_ref(),
            "[operator]\nca = \"/ca\"\n[hosts.web1]\naddress = \"10.0.0.5:7443\"\nssh = \"10.0.0.6:2222\"\n\
             [hosts.db]\naddress = \"[2001:db8::5]:7443\"\n[hosts.me]\nsocket = \"/s\"\n",
            None,
        )
        .unwrap()
    }

    fn named(host: &str) -> TargetArgs {
        TargetArgs { hosts: vec![host.into()], ..TargetArgs::default() }
    }

    fn one(args: &TargetArgs, config: &Config) -> Result<Target, Failure> {
        args.resolve_all(config).map(|mut targets| targets.remove(0))
    }

    #[test]
    fn from_configuration_and_arguments() {
        let web1 = one(&named("web1"), &config()).unwrap();
        assert_eq!(web1.door, Door::Tls { address: "10.0.0.5:7443".into(), ca: "/ca".into() });
        assert_eq!((web1.ssh_host.as_str(), web1.ssh_port), ("10.0.0.6", Some(2222)));
        let db = one(&named("db"), &config()).unwrap();
        assert_eq!((db.ssh_host.as_str(), db.ssh_port), ("2001:db8::5", None));
        let me = one(&named("me"), &config()).unwrap();
        assert_eq!((me.door, me.ssh_host.as_str()), (Door::Socket("/s".into()), "127.0.0.1"));
        let local = one(&TargetArgs { local: true, ..TargetArgs::default() }, &config()).unwrap();
        assert_eq!(local.door, Door::Socket(LOCAL_SOCKET.into()));
        let elsewhere = TargetArgs { address: Some("h:1".into()), ca: Some("/other".into()), ..named("me") };
        assert_eq!(one(&elsewhere, &config()).unwrap().door, Door::Tls { address: "h:1".into(), ca: "/other".into() });
    }

    #[test]
    fn several_hosts_are_those_of_the_configuration() {
        let several = |address: Option<&str>| TargetArgs {
            hosts: ["web1", "db", "web1"].map(ToOwned::to_owned).to_vec(),
            address: address.map(ToOwned::to_owned),
            ..TargetArgs::default()
        };
        let names: Vec<_> = several(None).resolve_all(&config()).unwrap().into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["web1", "db"]);
        assert!(several(Some("h:1")).resolve_all(&config()).unwrap_err().to_string().contains("for one host"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let unknown = one(&named("nowhere"), &config()).unwrap_err();
        assert!(unknown.to_string().contains("[hosts.nowhere]") && unknown.exit_code() == 2);
        let no_ca = one(&TargetArgs { address: Some("h:1".into()), ..named("x") }, &Config::default()).unwrap_err();
        assert!(no_ca.to_string().contains("operator.ca"));
        let option = TargetArgs { address: Some("-oProxyCommand=x:1".into()), ..named("x") };
        assert!(one(&option, &config()).is_err());
    }
}
