//! A throw-away local account, and a `sudo` rule for it that asks a real password.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use anyhow::{Context, Result};
use nix::unistd::User;

use crate::{
    machine,
    undo::{Entry, Run, account_tool},
};

/// A local account that lives as long as the run.
#[derive(Clone, Debug)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Home folder, inside the run's.
    pub home: PathBuf,
}

impl Account {
    /// Makes an account named after the run and `suffix`, with a home folder and bash, without a password.
    pub fn create(run: &Run, suffix: &str) -> Result<Self> {
        let name = format!("{}{suffix}", run.name());
        let home = run.folder().join(format!("home{suffix}"));
        run.note(Entry::Account(name.clone()))?;
        let home_text = home.to_str().context("a home folder that is not UTF-8")?;
        let options =
            ["--create-home", "--home-dir", home_text, "--user-group", "--shell", "/bin/bash", "--no-log-init"];
        account_tool("useradd", &[&options[..], &[&name]].concat())?;
        let user = User::from_name(&name)?.context("useradd made no account")?;
        // A fixed prompt, so that the end of a command's output can be told, and no history file to wait for.
        fs::write(home.join(".bash_profile"), format!("PS1='{PROMPT}'\nunset HISTFILE\n"))?;
        Ok(Self { name, uid: user.uid.as_raw(), home })
    }
}

/// Prompt of the account's login shell.
pub const PROMPT: &str = "glass\\$ ";

/// [`PROMPT`] as it appears on the terminal.
pub const PROMPT_SHOWN: &str = "glass$ ";

/// Lets `account` use `sudo` for everything after the given password, with these `Defaults` of sudoers.
///
/// The account's own password belongs to the agent, and root's must not be touched. So this account's sudo gets a PAM service of
/// its own, whose authentication compares what was typed with a file; prompt, terminal modes and everything else are sudo's.
pub fn allow_sudo(run: &Run, account: &Account, password: &str, defaults: &str) -> Result<()> {
    let folder = run.make("sudo", 0o700)?;
    let (secret, check) = (folder.join("password"), folder.join("check"));
    fs::write(&secret, format!("{password}\n"))?;
    // Only builtins, so that neither the password nor a helper process shows anywhere. `read` fails at the missing newline
    // behind a password from PAM and has still taken it.
    let script = format!(
        "#!/bin/sh\nread -r typed\nread -r right < {} || exit 1\n[ \"$typed\" = \"$right\" ]\n",
        secret.display()
    );
    fs::write(&check, script)?;
    fs::set_permissions(&check, fs::Permissions::from_mode(0o700))?;

    let service = PathBuf::from("/etc/pam.d").join(&account.name);
    run.note(Entry::Path(service.clone()))?;
    let rest = ["account", "session"].map(|kind| match fs::exists(format!("/etc/pam.d/common-{kind}")) {
        Ok(true) => format!("@include common-{kind}\n"),
        _ => format!("{kind} required pam_permit.so\n"),
    });
    // pam_exec reports a wrong password as a broken system; pam_deny turns that into a wrong password.
    let auth = format!(
        "auth [success=done default=ignore] pam_exec.so seteuid quiet expose_authtok {}\nauth required pam_deny.so\n",
        check.display()
    );
    fs::write(&service, format!("#%PAM-1.0\n{auth}{}", rest.concat()))?;

    let name = &account.name;
    let rule = format!(
        "Defaults:{name} pam_service={name}, pam_login_service={name}, !lecture, {defaults}\n{name} ALL=(ALL:ALL) ALL\n"
    );
    put_rule(run, account, &rule)
}

/// Lets `account` use `sudo` for everything without a password, as hosts do whose operators have keys only.
pub fn allow_sudo_freely(run: &Run, account: &Account) -> Result<()> {
    let name = &account.name;
    put_rule(run, account, &format!("Defaults:{name} !lecture, !use_pty\n{name} ALL=(ALL:ALL) NOPASSWD: ALL\n"))
}

fn put_rule(run: &Run, account: &Account, rule: &str) -> Result<()> {
    let folder = run.make("sudo", 0o700)?;
    let path = PathBuf::from("/etc/sudoers.d").join(&account.name);
    run.note(Entry::Path(path.clone()))?;
    // Checked before it is put in place: a wrong line would break sudo for everybody.
    let draft = folder.join("rule");
    fs::write(&draft, rule)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o440))?;
    machine::run(std::process::Command::new(machine::program("visudo")?).arg("-cqf").arg(&draft))?;
    fs::copy(&draft, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
