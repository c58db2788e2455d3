//! What operators and reviewers do, by the commands that they would use.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::Session;
use serde::Deserialize;

use crate::{machine, poll, sshd::make_key, stack::Stack, terminal::Terminal};

/// What `breakglass open --no-ssh --json` prints, as far as the tests use it.
#[derive(Clone, Debug, Deserialize)]
pub struct Opened {
    /// The session's id.
    pub session: String,
    /// Account to log in as.
    pub account: String,
    /// Port to log in at.
    pub ssh_port: u16,
    /// Deadline on the boot clock, nanoseconds.
    pub deadline_boot_ns: u64,
    /// Length of the session, seconds.
    pub ttl_seconds: u64,
    /// The agent's own share, microseconds.
    pub agent_us: u64,
    /// The host's ssh keys as known_hosts lines without the host.
    pub ssh_host_keys: Vec<String>,
}

impl Stack {
    /// The `breakglass` command with the installation's configuration.
    pub fn breakglass(&self) -> Command {
        let mut command = Command::new(&self.binaries.cli);
        command
            .arg("--config")
            .arg(self.path("operator/config.toml"))
            .env("HOME", self.path("operator"))
            .env("NO_COLOR", "1")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("BREAKGLASS_CONFIG");
        command
    }

    /// Breaks the glass for `ttl`.
    pub fn open(&self, reason: &str, ttl: &str) -> Result<Opened> {
        self.opened_by(&["--reason", reason, "--ttl", ttl])
    }

    /// The same, over the agent's Unix socket.
    pub fn open_over_socket(&self, reason: &str, ttl: &str) -> Result<Opened> {
        let socket = self.socket();
        let socket = socket.to_str().context("a path that is not text")?;
        self.opened_by(&["--socket", socket, "--reason", reason, "--ttl", ttl])
    }

    fn opened_by(&self, arguments: &[&str]) -> Result<Opened> {
        let output = self.open_output(arguments)?;
        ensure!(
            output.status.success(),
            "open failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let opened: Opened = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("not understood: {}", String::from_utf8_lossy(&output.stdout)))?;
        self.write_known_hosts(&opened)?;
        Ok(opened)
    }

    /// `breakglass open HOST --no-ssh --json` with more arguments, whatever comes of it.
    pub fn open_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.breakglass();
        command.args(["open", self.host(), "--no-ssh", "--json"]).args(arguments);
        command.output().context("cannot run breakglass")
    }

    /// Closes the session as the operator.
    pub fn close(&self) -> Result<()> {
        machine::run(self.breakglass().args(["close", self.host()])).map(drop)
    }

    /// Closes the session and waits until the collector has all of it.
    pub fn close_and_collect(&self, opened: &Opened) -> Result<Session> {
        self.close()?;
        self.collected(&opened.session)
    }

    /// Waits until the collector has the end of a session, and with it everything before.
    pub fn collected(&self, session: &str) -> Result<Session> {
        let mut query = self.query()?;
        poll::until("the collector to have the session's end", poll::EVENTUALLY, || {
            let session = query.session(session)?;
            Ok(session.closed.is_some().then_some(session))
        })
    }

    /// Waits until the collector also has what the session left behind, after which nothing more is recorded of it.
    pub fn compared(&self, session: &str) -> Result<Session> {
        let mut query = self.query()?;
        poll::until("the collector to have what the session left behind", poll::EVENTUALLY, || {
            let session = query.session(session)?;
            Ok(session.compared.then_some(session))
        })
    }

    /// Plain ssh into the emergency account with the operator's key, nothing taken from the user's own configuration.
    pub fn ssh(&self, opened: &Opened) -> Command {
        let mut command = Command::new("ssh");
        let known_hosts = format!("UserKnownHostsFile={}", self.path("operator/known_hosts").display());
        command.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"]);
        command.args(["-o", "StrictHostKeyChecking=yes", "-o", &known_hosts, "-o", "LogLevel=ERROR"]);
        command.args(["-p", &opened.ssh_port.to_string(), "-l", &opened.account]).arg("-i").arg(self.key());
        command.arg("127.0.0.1").env_remove("SSH_AUTH_SOCK").env("TERM", "xterm");
        command
    }

    /// Runs one command over ssh, without a terminal, to its end.
    pub fn ssh_run(&self, opened: &Opened, line: &str) -> Result<String> {
        machine::run(self.ssh(opened).arg(line))
    }

    /// Opens a login shell at a terminal of the far end's sshd, and waits for its prompt. What is seen is exactly what sshd read
    /// from that terminal.
    pub fn login(&self, opened: &Opened) -> Result<Terminal> {
        // The option has to stand before the host's name.
        let plain = self.ssh(opened);
        let mut command = Command::new(plain.get_program());
        command.arg("-tt").args(plain.get_args()).env_remove("SSH_AUTH_SOCK").env("TERM", "xterm");
        let mut terminal = Terminal::start_piped(&self.run, &mut command)?;
        terminal.expect(crate::account::PROMPT_SHOWN)?;
        Ok(terminal)
    }

    /// What `breakglass replay SESSION --raw` prints.
    pub fn replay_raw(&self, session: &str) -> Result<Vec<u8>> {
        let output = self.breakglass().args(["replay", session, "--raw"]).output()?;
        ensure!(output.status.success(), "replay failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// What a reviewer's command prints.
    pub fn reviewed(&self, arguments: &[&str]) -> Result<String> {
        machine::run(self.breakglass().args(arguments))
    }

    /// Lets the reviewer sign sessions off, with an SSH key of their own; returns the key.
    pub fn make_reviewer(&self) -> Result<PathBuf> {
        let key = self.path("reviewer/id_ed25519");
        make_key(&key, "reviewer")?;
        self.list_reviewer(&key)?;
        Ok(key)
    }

    /// Has the collector take the reviewer's signatures with this key alone.
    pub fn list_reviewer(&self, key: &Path) -> Result<()> {
        let public = fs::read_to_string(key.with_extension("pub")).context("no public key")?;
        fs::write(self.reviewers(), format!("reviewer {public}")).context("cannot write the list of reviewers")
    }

    /// The file that lists who may review.
    pub fn reviewers(&self) -> PathBuf {
        self.path("collector/reviewers")
    }

    /// The key of the collector's transparency log.
    pub fn log_key(&self) -> Result<String> {
        let mut status = Command::new(&self.binaries.collector);
        status.args(["log", "status", "--json", "--dir"]).arg(self.path("collector"));
        let status: serde_json::Value = serde_json::from_str(&machine::run(&mut status)?)?;
        Ok(status["key"].as_str().context("the log has no key")?.to_owned())
    }

    /// Lets the operator's ssh know the host's keys.
    pub fn write_known_hosts(&self, opened: &Opened) -> Result<()> {
        let lines = opened.ssh_host_keys.iter().map(|key| format!("[127.0.0.1]:{} {key}\n", opened.ssh_port));
        fs::write(self.path("operator/known_hosts"), lines.collect::<String>()).context("cannot write known_hosts")
    }
}
