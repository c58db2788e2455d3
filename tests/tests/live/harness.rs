//! The harness itself, without anything of Breakglass: what the other tests take for granted.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use breakglass_tests::{
    account::{Account, PROMPT_SHOWN, allow_sudo},
    machine::{self, Need},
    poll,
    sshd::{Keys, Sshd, make_key},
    terminal::Terminal,
    undo::Run,
};
use nix::unistd::User;

use crate::{Company, Test};

pub const TESTS: &[Test] = &[
    Test {
        name: "harness::sudo_asks_a_real_password",
        needs: &[Need::Root, Need::Ssh, Need::Sudo],
        company: Company::Others,
        run: sudo_asks_a_real_password,
    },
    Test {
        name: "harness::a_run_leaves_nothing_behind",
        needs: &[Need::Root],
        company: Company::Others,
        run: a_run_leaves_nothing_behind,
    },
];

const PASSWORD: &str = "tr0ub4dor and 3 staples";

fn sudo_asks_a_real_password() -> Result<()> {
    for own_terminal in [false, true] {
        let run = Run::begin()?;
        let account = Account::create(&run, "")?;
        allow_sudo(&run, &account, PASSWORD, if own_terminal { "use_pty" } else { "!use_pty" })?;
        let key = run.make("keys", 0o755)?.join("key");
        make_key(&key, "test")?;
        let sshd = Sshd::start(&run, "sshd", &account.name, &Keys::File(key.with_extension("pub")), true)?;
        let mut ssh = Command::new("ssh");
        ssh.args(["-tt", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "IdentitiesOnly=yes", "-p", &sshd.port.to_string(), "-l", &account.name, "-i"])
            .arg(&key)
            .arg("127.0.0.1")
            .env_remove("SSH_AUTH_SOCK");
        let mut terminal = Terminal::start(&run, &ssh)?;
        terminal.expect(PROMPT_SHOWN)?;
        terminal.ask("sudo id -u", "password for")?;
        terminal.ask("a wrong one", "try again")?;
        // Echo is off again when it asks again, not before.
        terminal.expect("password for")?;
        terminal.ask(PASSWORD, "\n0\r\n")?;
        terminal.expect(PROMPT_SHOWN)?;
        terminal.send("exit\n")?;
        terminal.finish(poll::SOON)?;
        ensure!(!String::from_utf8_lossy(&terminal.seen()).contains(PASSWORD), "the password was echoed");
    }
    Ok(())
}

fn a_run_leaves_nothing_behind() -> Result<()> {
    let run = Run::begin()?;
    let account = Account::create(&run, "")?;
    allow_sudo(&run, &account, PASSWORD, "!use_pty")?;
    let folder = run.folder().to_owned();
    let mut child = Command::new(machine::program("setpriv")?)
        .args(["--reuid", &account.uid.to_string(), "--clear-groups", "sleep", "600"])
        .spawn()?;
    poll::until_true(
        "the account to run something",
        poll::SOON,
        || Ok(!machine::processes_of(account.uid).is_empty()),
    )?;
    drop(run);
    child.wait()?;
    ensure!(!folder.exists(), "{} is still there", folder.display());
    ensure!(User::from_name(&account.name)?.is_none(), "the account is still there");
    for file in ["sudoers.d", "pam.d"] {
        let path = format!("/etc/{file}/{}", account.name);
        ensure!(fs::symlink_metadata(&path).is_err(), "{path} is still there");
    }
    Ok(())
}
