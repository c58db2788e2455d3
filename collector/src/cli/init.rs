//! `breakglass-collector init`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use crate::pki::{Authority, Owner, create_private_dir};
use crate::reviews::ReviewSettings;
use crate::settings::{Alarms, Enrol, Layout, Settings};
use crate::tlog::note::{KeyType, NoteKey};
use crate::tlog::settings::LogSettings;

#[derive(Debug, Args)]
pub struct Init {
    /// The folder to make. It may exist, but not hold a collector.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The name that clients verify the collector's certificate against.
    #[arg(long, default_value = "collector")]
    name: String,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7444")]
    listen: SocketAddr,
    /// A further DNS name or address that the certificate is good for; may be given more than once.
    #[arg(long = "san", value_name = "NAME")]
    sans: Vec<String>,
    /// The transparency log's name, for ever: best a URL without its scheme that nobody else uses. [default: NAME/log]
    #[arg(long, value_name = "ORIGIN")]
    log_origin: Option<String>,
    /// Serve the transparency log over HTTP here. It is kept in any case.
    #[arg(long, value_name = "ADDRESS:PORT")]
    log_listen: Option<SocketAddr>,
}

impl Init {
    pub fn run(&self) -> anyhow::Result<()> {
        let layout = Layout::new(&self.dir);
        for path in [layout.config(), layout.ca_cert(), layout.ca_key(), layout.log_key()] {
            if path.exists() {
                bail!("{} exists already: this folder holds a collector, and nothing was changed", path.display());
            }
        }
        // Everything that can be refused is tried before anything is written.
        let (ca, root) = Authority::create()?;
        let leaf = ca.issue_collector(&self.name, &self.all_sans())?;
        let origin = self.log_origin.clone().unwrap_or_else(|| format!("{}/log", self.name));
        let log_key = NoteKey::generate(&origin, KeyType::Note).context("--log-origin")?;
        let log = LogSettings { origin, listen: self.log_listen, ..LogSettings::default() };
        let settings = Settings {
            name: self.name.clone(),
            listen: self.listen,
            log,
            review: ReviewSettings::default(),
            enrol: Enrol::default(),
            alarms: Alarms::default(),
        };
        let config = toml::to_string(&settings).context("cannot write the settings")?;

        create_private_dir(&self.dir)?;
        let owner = Owner::of(&self.dir)?;
        owner.create_private_dir(&layout.data())?;
        owner.write_private(&layout.ca_key(), &root.key_pem)?;
        owner.write_new(&layout.ca_cert(), &root.cert_pem)?;
        owner.write_private(&layout.key(), &leaf.key_pem)?;
        owner.write_new(&layout.cert(), &leaf.cert_pem)?;
        owner.write_private(&layout.log_key(), &log_key.to_secret())?;
        // Last: with this file the folder is complete.
        owner.write_new(&layout.config(), &config)?;
        self.explain(&log_key);
        Ok(())
    }

    fn all_sans(&self) -> Vec<String> {
        sorted(&self.name, [self.sans.clone(), usual_names(self.listen)].concat())
    }

    fn explain(&self, log_key: &NoteKey) {
        let dir = self.dir.display();
        println!(
            "The collector {name} is ready in {dir}.\n\n\
             Start it:        breakglass-collector serve --dir {dir}\n\
             Enrol a host:    breakglass-collector enroll token web1 --dir {dir}\n\
             \x20                then run what it prints on the host\n\
             Enrol a person:  breakglass-collector enroll person alice --role reviewer --dir {dir} --out alice\n\
             \x20                then: breakglass --config alice/config.toml sessions\n\
             Let her review:  echo \"alice $(cat alice-ssh-key.pub)\" >> {dir}/reviewers\n\n\
             Its transparency log is verified with this key; give it to auditors and witnesses:\n\n\
             \x20   {log}\n\n\
             {dir}/ca.key signs every certificate: keep a copy offline. Hosts renew theirs with it every ten days or so.",
            name = self.name,
            log = log_key.public(),
        );
    }
}

/// What every collector's certificate is good for beside its name: this machine, and the address it listens on.
pub(super) fn usual_names(listen: SocketAddr) -> Vec<String> {
    let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    names
}

/// Each once, without the name that is in the certificate anyway.
pub(super) fn sorted(name: &str, mut names: Vec<String>) -> Vec<String> {
    names.retain(|one| one != name);
    names.sort();
    names.dedup();
    names
}
