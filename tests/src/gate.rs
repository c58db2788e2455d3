//! The PAM gate as the package's profile describes it, in services of the run's own: the machine's services stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    machine,
    stack::Stack,
    undo::{Entry, Run},
};

/// The profile for pam-auth-update that the package installs.
const PROFILE: &str = include_str!("../../agent/dist/pam-configs/breakglass");

/// What does with PAM what login(1) does.
const LOGIN: &str = include_str!("pam_login.py");

/// What guards which account.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The helper.
    pub agent: PathBuf,
    /// The account.
    pub account: String,
    /// The agent's runtime folder.
    pub runtime: PathBuf,
}

/// What PAM's phases answered, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Authenticated.
    pub auth: bool,
    /// May log in.
    pub account: bool,
    /// The session has begun.
    pub session: bool,
}

impl Gate {
    /// Writes a service; `change` may spoil its text.
    pub fn install(&self, run: &Run, service: &str, change: impl FnOnce(String) -> String) -> Result<()> {
        let path = Path::new("/etc/pam.d").join(service);
        run.note(Entry::Path(path.clone()))?;
        fs::write(&path, change(self.service()?)).with_context(|| format!("cannot write {}", path.display()))
    }

    /// As pam-auth-update would write it, in one file: the gate is the first of those that can authenticate, and comes last elsewhere.
    fn service(&self) -> Result<String> {
        let mut text = String::from("#%PAM-1.0\n");
        text += &self.lines("Auth")?.replace("success=end", "success=2");
        text +=
            "auth [success=1 default=ignore] pam_unix.so\nauth requisite pam_deny.so\nauth required pam_permit.so\n";
        text += "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\n";
        text += "account required pam_permit.so\n";
        text += &self.lines("Account")?;
        text += "session required pam_permit.so\nsession optional pam_loginuid.so\nsession required pam_unix.so\n";
        text += &self.lines("Session")?;
        Ok(text)
    }

    /// The profile's lines of one kind, for this account and these paths.
    fn lines(&self, kind: &str) -> Result<String> {
        let after =
            PROFILE.split(&format!("\n{kind}:\n")).nth(1).with_context(|| format!("no {kind} in the profile"))?;
        let lines = after.lines().map_while(|line| line.strip_prefix('\t'));
        let lines: String = lines.map(|line| format!("{} {line}\n", kind.to_lowercase())).collect();
        ensure!(lines.contains("breakglass-agent gate"), "the profile's {kind} does not ask the gate");
        Ok(lines
            .replace("= breakglass", &format!("= {}", self.account))
            .replace("/usr/sbin/breakglass-agent", &self.agent.display().to_string())
            .replace("gate auth", &format!("gate auth {}", self.arguments()))
            .replace("gate account", &format!("gate account {}", self.arguments()))
            .replace("gate session", &format!("gate session {}", self.arguments())))
    }

    fn arguments(&self) -> String {
        format!("--account {} --runtime {}", self.account, self.runtime.display())
    }
}

/// Logs in as login(1) would.
pub fn login(service: &str, user: &str, password: &str) -> Result<Answers> {
    let mut python = Command::new(machine::program("python3")?);
    let said = machine::run(python.args(["-c", LOGIN, service, user, "/dev/tty63", password]))?;
    let phase = |name: &str| said.lines().any(|line| line == format!("{name} yes"));
    ensure!(said.lines().count() == 3, "not three answers: {said}");
    Ok(Answers { auth: phase("auth"), account: phase("account"), session: phase("session") })
}

impl Stack {
    /// The gate of this installation.
    pub fn gate(&self) -> Gate {
        Gate { agent: self.path("bin/breakglass-agent"), account: self.account.name.clone(), runtime: self.path("run") }
    }

    /// Issues one-time codes and reads them from the sheet.
    pub fn issue_codes(&self, count: usize) -> Result<Vec<String>> {
        let mut command = Command::new(self.path("bin/breakglass-agent"));
        command.args(["codes", "issue", "--count", &count.to_string(), "--config"]).arg(self.path("agent.toml"));
        let sheet = machine::run(&mut command)?;
        let codes: Vec<String> = sheet
            .lines()
            .filter(|line| line.ends_with("[ ] used"))
            .filter_map(|line| Some(line.split_ascii_whitespace().nth(1)?.to_owned()))
            .collect();
        ensure!(codes.len() == count, "not {count} codes on the sheet:\n{sheet}");
        Ok(codes)
    }
}
