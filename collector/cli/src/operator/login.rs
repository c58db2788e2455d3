//! Goes on into `ssh`, as a child, with the host keys that came with the grant.

use std::{
    ffi::OsStr,
    io::{IsTerminal, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::ExitStatus,
};

use breakglass_api::v1::Opened;
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

use super::{failure::Failure, target::Target};

/// Logs in and waits for the end; returns what to exit with.
pub async fn login(
    ssh: &OsStr,
    target: &Target,
    opened: &Opened,
    identity: &Path,
    kex: Option<String>,
    remote: &[String],
) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::Other(format!("cannot run {}: {e}", ssh.display()));
    let mut known_hosts = tempfile::NamedTempFile::with_prefix("breakglass-known-hosts-").map_err(failed)?;
    let alias = format!("breakglass-{}", opened.session);
    known_hosts.write_all(known_hosts_text(&alias, &opened.ssh_host_keys)?.as_bytes()).map_err(failed)?;
    let mut command = Command::new(ssh);
    command.arg("-i").arg(identity).args(options(&alias, known_hosts.path(), target, opened));
    if let Some(kex) = kex {
        command.arg("-o").arg(kex);
    }
    if !remote.is_empty() && std::io::stdin().is_terminal() {
        command.arg("-t");
    }
    command.arg("--").arg(format!("{}@{}", account(opened)?, target.ssh_host)).args(remote);
    // From here on an interrupt at the terminal is for the far end; what it ends there ends ssh.
    let _interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let _quit = signal(SignalKind::quit()).map_err(failed)?;
    let status = command.kill_on_drop(true).status().await.map_err(failed)?;
    Ok(exit_code(status))
}

/// Lines for a known_hosts file. The keys come from the host over a checked connection; still nothing but a key may pass.
fn known_hosts_text(alias: &str, keys: &[String]) -> Result<String, Failure> {
    let plain = |key: &String| {
        key.split(' ').count() == 2 && key.chars().all(|c| c.is_ascii_alphanumeric() || " -+/=@.".contains(c))
    };
    match keys.iter().find(|key| !plain(key)) {
        Some(_) => Err(Failure::Other("the host named an ssh host key that is none".into())),
        None if keys.is_empty() => Err(Failure::Other(
            "the host named no ssh host keys, so it could not be told from another; set account.ssh_host_keys in its agent.toml".into(),
        )),
        None => Ok(keys.iter().map(|key| format!("{alias} {key}\n")).collect()),
    }
}

fn account(opened: &Opened) -> Result<&str, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let fits = !opened.account.is_empty() && !opened.account.starts_with('-') && opened.account.chars().all(plain);
    if fits { Ok(&opened.account) } else { Err(Failure::Other("the host named an account that is none".into())) }
}

fn options(alias: &str, known_hosts: &Path, target: &Target, opened: &Opened) -> Vec<String> {
    let port = target.ssh_port.map_or(opened.ssh_port, u32::from);
    let mut options = vec!["-p".to_owned(), port.to_string()];
    for option in [
        format!("HostKeyAlias={alias}"),
        format!("UserKnownHostsFile={}", known_hosts.display()),
        "GlobalKnownHostsFile=/dev/null".into(),
        "StrictHostKeyChecking=yes".into(),
        "UpdateHostKeys=no".into(),
        "IdentitiesOnly=yes".into(),
        "PreferredAuthentications=publickey".into(),
        // A connection that was kept from before would not be part of this session.
        "ControlPath=none".into(),
    ] {
        options.extend(["-o".to_owned(), option]);
    }
    options
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_and_names_reach_ssh() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQF+/==".to_owned();
        assert_eq!(known_hosts_text("a", std::slice::from_ref(&key)).unwrap(), format!("a {key}\n"));
        for bad in ["", "ssh-ed25519", "ssh-ed25519 AAAA\n* ssh-rsa BBBB", "@cert-authority * ssh-rsa", "a b c"] {
            assert!(known_hosts_text("a", &[key.clone(), bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(known_hosts_text("a", &[]).is_err());
        let with = |account: &str| Opened { account: account.into(), ..Opened::default() };
        assert!(account(&with("breakglass")).is_ok());
        for bad in ["", "-oProxyCommand=x", "a@b", "a b", "a\n"] {
            assert!(account(&with(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 128 + 15);
    }
}
