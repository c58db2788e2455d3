//! Logging in again, and to the other hosts of several: `breakglass login`.
//!
//! What a host answered when it opened (its account, its ssh host keys) is kept until the person logs out of this machine or the session
//! is over: one file a host in `$XDG_RUNTIME_DIR/breakglass`, or in `~/.cache/breakglass` where there is none. It holds no secret; whoever
//! could write it could as well replace the command.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use breakglass_api::v1::Opened;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Tools, failure::Failure, kex, login, say, sign, target::Target};
use crate::config::Config;

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Arguments of `login`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  breakglass open web1 web2 --reason 'the cluster is down'\n  breakglass login web2\n  \
                        breakglass login web2 -- journalctl -e"
)]
pub struct LoginArgs {
    /// A host that this person opened from this machine.
    #[arg(value_name = "HOST")]
    pub host: String,
    /// Command to run on the host, in place of a shell.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What is kept of a host that is open.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    host: String,
    session: String,
    account: String,
    ssh_host: String,
    ssh_port: u16,
    ssh_host_keys: Vec<String>,
    identity: PathBuf,
    /// Unix seconds.
    until: u64,
}

/// Keeps what is needed to log in again. Without it everything else still works, so a failure is only said.
pub(super) fn keep(tools: &Tools, target: &Target, opened: &Opened, identity: &Path) {
    let Some(folder) = &tools.kept else { return };
    if let Err(error) = write(folder, target, opened, identity) {
        say(&format!("Warning: breakglass login {} will not work: {error}", target.name));
    }
}

/// Logs in to a host that is open.
pub(super) async fn login(args: &LoginArgs, config: &Config, tools: &Tools) -> Result<u8, Failure> {
    let not_open =
        || Failure::Usage(format!("{0} was not opened from here, or its time is over: breakglass open {0}", args.host));
    let kept = tools.kept.as_ref().and_then(|folder| read(folder, &args.host));
    let kept = kept.filter(|kept| kept.until > now()).ok_or_else(not_open)?;
    let target = Target {
        name: kept.host,
        named: true,
        door: super::target::Door::Socket(PathBuf::new()),
        ssh_host: kept.ssh_host,
        ssh_port: Some(kept.ssh_port),
    };
    let opened =
        Opened { session: kept.session, account: kept.account, ssh_host_keys: kept.ssh_host_keys, ..Opened::default() };
    let kex = match config.operator.fast_key_exchange {
        true => kex::option(tools.ssh.clone()).await,
        false => None,
    };
    login::login(&tools.ssh, &target, &opened, &kept.identity, kex, &args.command).await
}

/// Where it is kept for this person.
pub(super) fn folder() -> Option<PathBuf> {
    let place = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let runtime = place("XDG_RUNTIME_DIR").map(|runtime| runtime.join("breakglass"));
    runtime.or_else(|| place("HOME").map(|home| home.join(".cache/breakglass")))
}

/// The file of a host. Names are what people write into the configuration, so they may be no file names.
fn file(folder: &Path, host: &str) -> PathBuf {
    let name: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    folder.join(format!("{name}.json"))
}

fn write(folder: &Path, target: &Target, opened: &Opened, identity: &Path) -> std::io::Result<()> {
    let kept = Kept {
        host: target.name.clone(),
        session: opened.session.clone(),
        account: opened.account.clone(),
        ssh_host: target.ssh_host.clone(),
        ssh_port: target.ssh_port.unwrap_or(u16::try_from(opened.ssh_port).unwrap_or(22)),
        ssh_host_keys: opened.ssh_host_keys.clone(),
        identity: std::path::absolute(sign::login_key(identity))?,
        until: now().saturating_add(opened.ttl_seconds),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file_new = tempfile::NamedTempFile::new_in(folder)?;
    file_new.write_all(&serde_json::to_vec(&kept)?)?;
    file_new.persist(file(folder, &target.name))?;
    Ok(())
}

fn read(folder: &Path, host: &str) -> Option<Kept> {
    let path = file(folder, host);
    if fs::metadata(&path).ok()?.len() > FILE_MAX {
        return None;
    }
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (kept.host == host).then_some(kept)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_open_is_logged_in_to() {
        let folder = tempfile::tempdir().unwrap();
        let tools = Tools { ssh: "/bin/false".into(), kept: Some(folder.path().into()), ..Tools::default() };
        let target = Target {
            name: "web1".into(),
            named: true,
            door: super::super::target::Door::Socket("/s".into()),
            ssh_host: "10.0.0.1".into(),
            ssh_port: None,
        };
        let args = LoginArgs { host: "web1".into(), command: Vec::new() };
        let refused = login(&args, &Config::default(), &tools).await.unwrap_err();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("breakglass open web1"), "{refused}");
        let key = "ssh-ed25519 AAAA".to_owned();
        let opened = |ttl_seconds| Opened {
            session: "s1".into(),
            account: "bg".into(),
            ssh_host_keys: vec![key.clone()],
            ttl_seconds,
            ..Opened::default()
        };
        keep(&tools, &target, &opened(0), Path::new("/key"));
        assert!(login(&args, &Config::default(), &tools).await.is_err(), "its time is over");
        keep(&tools, &target, &opened(60), Path::new("/key"));
        assert_eq!(login(&args, &Config::default(), &tools).await.unwrap(), 1, "ssh's own exit code");
    }

    #[test]
    fn what_is_kept_is_found_until_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target {
            name: "web1/../x".into(),
            named: true,
            door: super::super::target::Door::Socket("/s".into()),
            ssh_host: "10.0.0.1".into(),
            ssh_port: None,
        };
        let opened = Opened { session: "s1".into(), ssh_port: 2222, ttl_seconds: 60, ..Opened::default() };
        write(folder.path(), &target, &opened, Path::new("key")).unwrap();
        let kept = read(folder.path(), "web1/../x").unwrap();
        assert!(kept.identity.is_absolute() && kept.ssh_port == 2222 && kept.until > now());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "inside the folder, whatever the name");
        assert!(read(folder.path(), "web1_.._x").is_none(), "another host");
        fs::write(file(folder.path(), "web2"), "{").unwrap();
        assert!(read(folder.path(), "web2").is_none());
    }
}
