//! The installed product: packages, enrolment, services, and the means to use them as an operator and a reviewer would.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use breakglass_api::v1::{Alert, Event, Opened, Refused, SessionClosed, Status, event::Body};
use breakglass_tests::{control::Control, grant, machine, poll, query::Query, sshd::make_key, undo::Run};

use crate::guest::shell;

/// The emergency account, as the package makes it.
pub const ACCOUNT: &str = "breakglass";

/// Who may break the glass here.
pub const OPERATOR: &str = "alice@example.org";

/// Generous: under emulation a login takes seconds.
pub const SOON: Duration = Duration::from_secs(60);

/// Where the system's own sshd listens, with PAM.
pub const PAM: u16 = 22;

/// Where one with the same configuration listens, but without PAM.
pub const NO_PAM: u16 = 2222;

const SOCKET: &str = "/run/breakglass/control.sock";
/// The operator's files: in memory, as on a machine of their own; the tests fill this one's disk.
const FOLDER: &str = "/run/access";
const COLLECTOR: &str = "127.0.0.1:7444";

/// Comment lines of the packaged configuration that are to count, and what else is set for the lab.
const SETTINGS: &[(&str, &str)] = &[
    ("# name = \"web1\"", "name = \"lab\""),
    ("# [collector]", "[collector]"),
    ("# urls = [\"https://collector.example.org:7444\"]", "urls = [\"https://127.0.0.1:7444\"]"),
    ("# server_name = \"collector\"", "server_name = \"collector\""),
    // The tests of what was left behind switch it on; a walk takes longer here than anything else.
    ("walk = true", "walk = false"),
];

/// The installation. Dropping it ends what is open.
pub struct Host {
    /// For terminals and what else must be taken back.
    pub run: Run,
    /// The account's user id.
    pub uid: u32,
}

impl Host {
    /// Installs where that was not done yet, and starts everything.
    pub fn up() -> Result<Self> {
        if !Path::new("/usr/sbin/breakglass-agent").exists() {
            super::install::install()?;
            configure()?;
        }
        shell("systemctl start breakglass-collector breakglass-agent")?;
        if shell("systemctl is-active sshd-no-pam || true")?.trim() != "active" {
            shell(&format!(
                "systemd-run --quiet --collect --unit=sshd-no-pam /usr/sbin/sshd -D -o UsePAM=no -o Port={NO_PAM} -o PidFile=none"
            ))?;
        }
        let uid = shell(&format!("id -u {ACCOUNT}"))?.trim().parse()?;
        let host = Self { run: Run::begin()?, uid };
        host.wait_for_state("locked")?;
        Ok(host)
    }

    /// Starts the agent anew with lines of its configuration changed.
    pub fn restart_with(&self, changes: &[(&str, &str)]) -> Result<Status> {
        set(changes)?;
        shell("systemctl restart breakglass-agent")?;
        self.wait_for_state("locked")
    }

    /// The operator's private key.
    pub fn key(&self) -> PathBuf {
        Path::new(FOLDER).join("id_ed25519")
    }

    /// A file of the operator's.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    /// What the agent says.
    pub fn status(&self) -> Result<Status> {
        control()?.status()
    }

    /// Waits until the agent is in `state`.
    pub fn wait_for_state(&self, state: &str) -> Result<Status> {
        poll::until(&format!("the agent to be {state}"), SOON, || {
            let status = self.status()?;
            Ok((status.state == state).then_some(status))
        })
    }

    /// Hands in a proof by the operator's key, over the Unix socket: no clock and no network is asked.
    pub fn ask(&self, reason: &str, ttl: Duration) -> Result<Result<Opened, Refused>> {
        let mut control = control()?;
        let request = grant::request(&control.challenge()?, OPERATOR, reason, ttl.as_secs())?;
        let proof = grant::prove(&request, &self.key())?;
        control.open(&proof.text, &proof.signature)
    }

    /// Breaks the glass.
    pub fn open(&self, reason: &str, ttl: Duration) -> Result<Opened> {
        match self.ask(reason, ttl)? {
            Ok(opened) => Ok(opened),
            Err(refused) => bail!("not opened: {} ({})", refused.message, refused.code),
        }
    }

    /// Breaks the glass, runs the case, and closes whatever came of it.
    pub fn with_session(&self, reason: &str, case: impl FnOnce(&Opened) -> Result<()>) -> Result<()> {
        let opened = self.open(reason, Duration::from_secs(600))?;
        let result = case(&opened);
        // A case may have closed it itself.
        let closed = self.close();
        result?;
        match self.status()?.state.as_str() {
            "locked" => Ok(()),
            state => bail!("still {state} after {closed:?}"),
        }
    }

    /// Closes as root on the host.
    pub fn close(&self) -> Result<()> {
        control()?.close().map(drop)
    }

    /// ssh into the account with a key and nothing else. The destination is added by the caller, and what follows it.
    pub fn ssh(&self, port: u16, key: &Path) -> Command {
        self.ssh_as(ACCOUNT, port, key)
    }

    /// As [`Host::ssh`], into any account.
    pub fn ssh_as(&self, user: &str, port: u16, key: &Path) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=INFO"]);
        // The usual exchange takes seconds of arithmetic under emulation.
        command.args(["-o", "KexAlgorithms=curve25519-sha256", "-o", &format!("User={user}")]);
        command.args(["-o", &format!("Port={port}"), "-i"]);
        command.arg(key).env_remove("SSH_AUTH_SOCK");
        command
    }

    /// Whether the operator's key gets in. What is neither in nor refused is an error.
    pub fn key_lets_in(&self, port: u16) -> Result<bool> {
        lets_in(self.ssh(port, &self.key()).args(["127.0.0.1", "echo in"]))
    }

    /// Whether what was typed at sshd's prompt gets somebody in.
    pub fn typed_lets_in(&self, port: u16, typed: &str) -> Result<bool> {
        let askpass = self.path("askpass");
        fs::write(&askpass, format!("#!/bin/sh\necho '{typed}'\n"))?;
        fs::set_permissions(&askpass, fs::Permissions::from_mode(0o700))?;
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "PubkeyAuthentication=no", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "LogLevel=INFO", "-o", "UserKnownHostsFile=/dev/null", "-o", "NumberOfPasswordPrompts=1"]);
        command.args(["-o", "KexAlgorithms=curve25519-sha256", "-p", &port.to_string(), "-l", ACCOUNT]);
        command.args(["127.0.0.1", "echo in"]).env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force");
        lets_in(command.env_remove("SSH_AUTH_SOCK"))
    }

    /// Issues one-time codes and reads them from the sheet.
    pub fn issue_codes(&self, count: usize) -> Result<Vec<String>> {
        let sheet = shell(&format!("breakglass-agent codes issue --count {count}"))?;
        let lines = sheet.lines().filter(|line| line.ends_with("[ ] used"));
        let codes: Vec<String> =
            lines.filter_map(|line| Some(line.split_ascii_whitespace().nth(1)?.to_owned())).collect();
        ensure!(codes.len() == count, "not {count} codes on the sheet:\n{sheet}");
        Ok(codes)
    }

    /// The collector, as the reviewer sees it.
    pub fn query(&self) -> Result<Query> {
        let address: SocketAddr = COLLECTOR.parse()?;
        Query::new(address, &self.path("reviewer"))
    }

    /// Everything recorded of this host.
    pub fn events(&self) -> Result<Vec<Event>> {
        let events = self.query()?.host_events(&host_id()?)?;
        Ok(events.into_iter().filter_map(|recorded| recorded.event).collect())
    }

    /// Waits until something recorded of this host, now or before, gives what is looked for. Each event is fetched and looked at once:
    /// with all that the tests before have left, more than a look a second would be too much for an emulated collector.
    pub fn recorded<T>(&self, what: &str, find: impl Fn(Event) -> Option<T>) -> Result<T> {
        let (mut query, id, mut frame) = (self.query()?, host_id()?, 0);
        poll::until(what, SOON, || {
            let more = query.host_events_after(&id, frame)?;
            frame = more.iter().map(|recorded| recorded.frame).fold(frame, u64::max);
            Ok(more.into_iter().filter_map(|recorded| recorded.event).find_map(&find))
        })
    }

    /// Waits until the collector has the end of a session.
    pub fn closed(&self, session: &str) -> Result<SessionClosed> {
        let mut query = self.query()?;
        poll::until("the collector to have the session's end", SOON, || Ok(query.session(session)?.closed))
    }

    /// Waits for an alert that `fits`.
    pub fn alert(&self, what: &str, fits: impl Fn(&Alert) -> bool) -> Result<Alert> {
        self.recorded(&format!("an alert: {what}"), |event| match event.body {
            Some(Body::Alert(alert)) if fits(&alert) => Some(alert),
            _ => None,
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a failed case left open. Best effort: the next test waits for the state that it needs.
        let _ = self.close();
    }
}

/// The collector's name of this host.
fn host_id() -> Result<String> {
    Ok(fs::read_to_string("/etc/breakglass/host/host-id").context("not enrolled")?.trim().to_owned())
}

/// A new connection to the agent.
pub fn control() -> Result<Control> {
    Control::connect(Path::new(SOCKET))
}

/// Whether a command of ssh's family got in: it printed `in`, or was refused as ssh refuses.
pub fn lets_in(command: &mut Command) -> Result<bool> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if output.status.success() && output.stdout == b"in\n" {
        return Ok(true);
    }
    ensure!(is_refusal(&output), "neither in nor refused: {}", said(&output));
    Ok(false)
}

/// Both streams and the status, for a message.
pub fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    format!("{} {:?}", output.status, String::from_utf8_lossy(&text))
}

fn is_refusal(output: &Output) -> bool {
    let complaint = said(output);
    let words = ["Permission denied", "closed by", "Connection closed", "not available", "no TTY", "reset by peer"];
    !output.status.success() && words.iter().any(|word| complaint.contains(word))
}

/// What an engineer does after the packages: collector, enrolment, operators, configuration.
fn configure() -> Result<()> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let dir = "/var/lib/breakglass-collector";
    shell(&format!(
        "cd / && runuser -u breakglass-collector -- breakglass-collector init --dir {dir} --listen {COLLECTOR} --san 127.0.0.1"
    ))?;
    shell(&format!("breakglass-collector enroll host lab --dir {dir} --out /etc/breakglass/host"))?;
    shell(&format!("breakglass-collector enroll person reviewer --role reviewer --dir {dir} --out {FOLDER}/reviewer"))?;
    // Enrolling as root may have made files of the collector's.
    shell(&format!("chown -R breakglass-collector: {dir}"))?;
    let key = folder.join("id_ed25519");
    make_key(&key, OPERATOR)?;
    let public = fs::read_to_string(key.with_extension("pub"))?;
    fs::write("/etc/breakglass/allowed_signers", format!("{OPERATOR} {public}"))?;
    set(SETTINGS)
}

/// Changes lines of the configuration; a line that is not there is an error.
fn set(changes: &[(&str, &str)]) -> Result<()> {
    let path = "/etc/breakglass/agent.toml";
    let mut text = fs::read_to_string(path)?;
    for (from, to) in changes {
        ensure!(text.lines().any(|line| line == *from), "{path} has no line {from:?}");
        text = text.lines().map(|line| format!("{}\n", if line == *from { *to } else { line })).collect();
    }
    fs::write(path, text).context(path)
}

/// Live processes that sleep for this long. systemd gives what it starts its whole path as its name.
pub fn running(word: &str) -> usize {
    ["sleep", "/usr/bin/sleep"].iter().map(|name| machine::processes_with(&[name, word]).len()).sum()
}
