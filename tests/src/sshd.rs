//! A throw-away sshd on loopback with a host key and a configuration of its own.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    daemon::Daemon,
    machine, poll,
    undo::{Entry, Run},
};

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum Keys {
    /// From a helper, as `AuthorizedKeysCommand`, with its arguments.
    Helper(String),
    /// From a file.
    File(PathBuf),
}

/// A running sshd.
#[derive(Debug)]
pub struct Sshd {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// Folder with its host keys.
    pub host_keys: PathBuf,
    /// Its process.
    pub daemon: Daemon,
}

impl Sshd {
    /// Starts one that lets only `account` in.
    pub fn start(run: &Run, name: &'static str, account: &str, keys: &Keys, pam: bool) -> Result<Self> {
        let program = machine::program("sshd")?;
        Self::start_program(run, name, Path::new(&program), configuration(account, keys, pam))
    }

    /// Starts one whose PAM service is `ACCOUNT-sshd`, and which takes what PAM asks for as well as keys.
    pub fn start_gated(run: &Run, name: &'static str, account: &str, keys: &Keys) -> Result<Self> {
        // sshd's service is named like its program.
        let program = run.make("bin", 0o755)?.join(format!("{account}-sshd"));
        // A second one runs the first one's copy.
        if !program.exists() {
            fs::copy(machine::program("sshd")?, &program)?;
        }
        let first = "AuthenticationMethods publickey keyboard-interactive\nKbdInteractiveAuthentication yes\n";
        Self::start_program(run, name, &program, format!("{first}{}", configuration(account, keys, true)))
    }

    fn start_program(run: &Run, name: &'static str, program: &Path, settings: String) -> Result<Self> {
        let host_keys = run.make(name, 0o755)?;
        let key = host_keys.join("ssh_host_ed25519_key");
        make_key(&key, "host")?;
        make_privilege_folder(run)?;
        let port = free_port()?;
        let config = host_keys.join("sshd_config");
        let place = format!("Port {port}\nListenAddress 127.0.0.1\nHostKey {}\n", key.display());
        fs::write(&config, place + &settings)?;
        let mut daemon = Daemon::start(run, name, Command::new(program).args(["-D", "-e", "-f"]).arg(&config))?;
        daemon.wait_for("that it listens", poll::SOON, |output| output.contains("Server listening").then_some(()))?;
        Ok(Self { port, host_keys, daemon })
    }
}

/// Makes an Ed25519 key without a passphrase.
pub fn make_key(path: &Path, comment: &str) -> Result<()> {
    let program = machine::program("ssh-keygen")?;
    machine::run(Command::new(program).args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(path)).map(drop)
}

/// A port that nobody listens at. Somebody else may take it first; whoever binds it then fails with a clear message.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).context("no free port")?.local_addr()?.port())
}

fn configuration(account: &str, keys: &Keys, pam: bool) -> String {
    let source = match keys {
        Keys::Helper(command) => {
            format!("AuthorizedKeysFile none\nAuthorizedKeysCommand {command}\nAuthorizedKeysCommandUser root\n")
        }
        Keys::File(path) => format!("AuthorizedKeysFile {}\n", path.display()),
    };
    let pam = if pam { "yes" } else { "no" };
    format!(
        "PidFile none\nUsePAM {pam}\nAllowUsers {account}\n{source}\
         AuthenticationMethods publickey\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin no\n\
         PrintMotd no\nPrintLastLog no\nUseDNS no\nMaxStartups 100\nMaxSessions 100\nSubsystem sftp internal-sftp\n\
         LogLevel VERBOSE\n"
    )
}

/// sshd's empty folder for its unprivileged child; usually the service's unit makes it.
fn make_privilege_folder(run: &Run) -> Result<()> {
    let path = Path::new("/run/sshd");
    if !path.exists() {
        run.note(Entry::Path(path.to_owned()))?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    }
    Ok(())
}
