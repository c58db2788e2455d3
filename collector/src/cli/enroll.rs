//! `breakglass-collector enroll`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::init::{sorted, usual_names};
use super::person_role;
use crate::enrol::token::Tokens;
use crate::pki::{
    self, Authority, Issued, Owner, Role, create_private_dir, read_private_key, write_new, write_private,
};
use crate::settings::{Layout, Settings};

#[derive(Debug, Subcommand)]
pub enum Enroll {
    /// Make the folder that a host's agent needs to send its records here.
    #[command(
        after_help = "Example:\n  breakglass-collector enroll host web1 --dir /var/lib/breakglass-collector --out web1"
    )]
    Host(Host),
    /// Make a token with which a host joins by itself, once; its private key never leaves it.
    #[command(
        after_help = "Example:\n  breakglass-collector enroll token web1 --dir /var/lib/breakglass-collector --url https://collector.example.org:7444"
    )]
    Token(Token),
    /// Take a host out of service: its records are refused from now on, and its silence is none.
    #[command(
        after_help = "Example:\n  breakglass-collector enroll retire HOST-ID --dir /var/lib/breakglass-collector"
    )]
    Retire(Retire),
    /// Make the collector's own certificate anew, for the names of the old one and for its key. It is taken at the next start.
    #[command(after_help = "It is good for a year; the collector reminds you from 30 days before its end.\n\n\
        Example:\n  breakglass-collector enroll collector --dir /var/lib/breakglass-collector")]
    Collector(Own),
    /// Make the folder that a person needs to look at records here.
    #[command(
        after_help = "Example:\n  breakglass-collector enroll person alice --role reviewer --dir /var/lib/breakglass-collector --out alice"
    )]
    Person(Person),
}

#[derive(Debug, Args)]
pub struct Host {
    /// The host's name, as people will see it.
    name: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub struct Token {
    /// The host's name, as people will see it.
    name: String,
    /// The host's id, where it was enrolled before and is to stay the same host.
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// How long the token is good, minutes; a week at most.
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    minutes: u32,
    /// How the host reaches the collector; by default the address in collector.toml.
    #[arg(long)]
    url: Option<String>,
    /// The collector's folder, as made by init.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Retire {
    /// The host's id.
    id: Uuid,
    /// Take it back into service instead.
    #[arg(long)]
    undo: bool,
    /// The collector's folder, as made by init.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Own {
    /// A further DNS name or address that the certificate is good for; may be given more than once.
    #[arg(long = "san", value_name = "NAME")]
    sans: Vec<String>,
    /// The collector's folder, as made by init.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Person {
    /// The person's name; for an operator, as in allowed_signers.
    name: String,
    /// operator (sees own sessions), reviewer (sees all) or admin.
    #[arg(long, value_parser = person_role)]
    role: Role,
    /// How the person reaches the collector; by default the address in collector.toml.
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// The collector's folder, as made by init.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

impl Enroll {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Enroll::Host(host) => host.run(),
            Enroll::Token(token) => token.run(),
            Enroll::Retire(retire) => retire.run(),
            Enroll::Collector(own) => own.run(),
            Enroll::Person(person) => person.run(),
        }
    }
}

impl Host {
    fn run(&self) -> anyhow::Result<()> {
        let layout = Layout::new(&self.place.dir);
        layout.settings()?;
        let id = Uuid::new_v4().to_string();
        let issued = Authority::load(&layout)?.issue_host(&id, &self.name)?;
        let out = &self.place.out;
        write_identity(&layout, out, "host", &issued)?;
        // Last: with this file the folder is complete.
        write_new(&out.join("host-id"), &format!("{id}\n"))?;
        println!("{} is host {id}; copy {} to it as /etc/breakglass/host", self.name, out.display());
        Ok(())
    }
}

impl Token {
    fn run(&self) -> anyhow::Result<()> {
        let layout = Layout::new(&self.dir);
        let settings = layout.settings()?;
        crate::pki::check_host_name(&self.name)?;
        let id = self.id.unwrap_or_else(Uuid::new_v4).to_string();
        let ca = crate::pki::certificate_der(&layout.ca_cert())?;
        let valid = Duration::from_secs(u64::from(self.minutes) * 60);
        Owner::of(&self.dir)?.create_private_dir(&layout.tokens())?;
        let token = Tokens::new(layout.tokens()).make(&id, &self.name, valid, &ca)?;
        let url = self.url.clone().unwrap_or_else(|| default_url(&settings));
        println!(
            "{} will be host {id}. Run on it, within {} minutes:\n\n  \
             breakglass-agent enroll --collector {url} --server-name {} --token {token}",
            self.name, self.minutes, settings.name
        );
        Ok(())
    }
}

impl Retire {
    fn run(&self) -> anyhow::Result<()> {
        let layout = Layout::new(&self.dir);
        layout.settings()?;
        let owner = Owner::of(&self.dir)?;
        owner.create_private_dir(&layout.retired())?;
        let path = layout.retired().join(self.id.to_string());
        match self.undo {
            false if layout.is_retired(&self.id.to_string()) => owner.take(&path)?,
            false => owner.write_private(&path, "")?,
            true => std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?,
        }
        println!("host {} is {}", self.id, if self.undo { "in service again" } else { "retired" });
        Ok(())
    }
}

impl Own {
    fn run(&self) -> anyhow::Result<()> {
        let layout = Layout::new(&self.dir);
        let settings = layout.settings()?;
        let (ca_key, key, cert) = (layout.ca_key(), layout.key(), layout.cert());
        if !ca_key.try_exists().with_context(|| format!("cannot look at {}", ca_key.display()))? {
            bail!(
                "{} is not here: put it back from where it is kept; without it no certificate can be made",
                ca_key.display()
            );
        }
        let authority = Authority::load(&layout)?;
        let names = match cert.try_exists().with_context(|| format!("cannot look at {}", cert.display()))? {
            true => pki::names_of(&cert)?,
            false => usual_names(settings.listen),
        };
        let names = sorted(&settings.name, [names, self.sans.clone()].concat());
        let owner = Owner::of(&self.dir)?;
        let issued = match key.try_exists().with_context(|| format!("cannot look at {}", key.display()))? {
            true => authority.renew_collector(&settings.name, &names, &read_private_key(&key)?)?,
            false => {
                let issued = authority.issue_collector(&settings.name, &names)?;
                owner.write_private(&key, &issued.key_pem)?;
                issued.cert_pem
            }
        };
        // At once: a collector that starts meanwhile finds the old one or the new one.
        let made = cert.with_extension("crt.new");
        match std::fs::remove_file(&made) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", made.display()));
            }
            _ => owner.write_new(&made, &issued)?,
        }
        std::fs::rename(&made, &cert).with_context(|| format!("cannot replace {}", cert.display()))?;
        println!(
            "{} is good until {} for {}; restart the collector to have it used",
            cert.display(),
            pki::end_of(&cert)?.date(),
            [vec![settings.name], names].concat().join(", ")
        );
        Ok(())
    }
}

/// What the `breakglass` command reads.
#[derive(Serialize)]
struct PersonConfig<'a> {
    collector: PersonCollector<'a>,
}

#[derive(Serialize)]
struct PersonCollector<'a> {
    url: String,
    server_name: &'a str,
    ca: &'static str,
    cert: &'static str,
    key: &'static str,
}

impl Person {
    fn run(&self) -> anyhow::Result<()> {
        let layout = Layout::new(&self.place.dir);
        let settings = layout.settings()?;
        let issued = Authority::load(&layout)?.issue_person(self.role, &self.name)?;
        let config = self.config(&settings)?;
        let out = &self.place.out;
        write_identity(&layout, out, "person", &issued)?;
        // Last: with this file the folder is complete.
        write_new(&out.join("config.toml"), &config)?;
        println!("{} is {}; try: breakglass --config {}/config.toml sessions", self.name, self.role, out.display());
        Ok(())
    }

    fn config(&self, settings: &Settings) -> anyhow::Result<String> {
        let config = PersonConfig {
            collector: PersonCollector {
                url: self.url.clone().unwrap_or_else(|| default_url(settings)),
                server_name: &settings.name,
                ca: "ca.crt",
                cert: "person.crt",
                key: "person.key",
            },
        };
        toml::to_string(&config).context("cannot write the person's settings")
    }
}

/// An address that listens everywhere is reached on this machine by loopback; from elsewhere --url says how.
fn default_url(settings: &Settings) -> String {
    let mut address = settings.listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("https://{address}")
}

fn write_identity(layout: &Layout, out: &Path, stem: &str, issued: &Issued) -> anyhow::Result<()> {
    let ca = layout.ca_cert();
    let ca = std::fs::read_to_string(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
    create_private_dir(out)?;
    write_private(&out.join(format!("{stem}.key")), &issued.key_pem)?;
    write_new(&out.join(format!("{stem}.crt")), &issued.cert_pem)?;
    write_new(&out.join("ca.crt"), &ca)
}
