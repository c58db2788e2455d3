//! Every state that the account's shadow entry can be left in by somebody else: at rest nobody gets in whatever it says, a session
//! opens from it, and closing locks it.
//!
//! A second account, without our helper and gate, shows what each state does by itself on this very machine; so a state that keeps
//! everybody out anyway cannot pass for our doing.

use std::fs;

use anyhow::{Result, ensure};
use breakglass_tests::sshd::make_key;

use super::{
    cases::Cases,
    host::{ACCOUNT, Host, NO_PAM, PAM, lets_in},
};
use crate::guest::{Guest, shell};

/// An account like any other.
const PLAIN: &str = "plain";

/// A state, how it is made (`USER` is the account), and whether by itself it lets a key in: with PAM, without.
struct State {
    name: &'static str,
    make: &'static str,
    lets_in: (bool, bool),
}

/// As measured with OpenSSH 9.2, Debian 12. The last day of expiry that counts as past is today, by UTC.
const STATES: &[State] = &[
    State { name: "password !hash", make: "usermod -p '!$6$x$y' USER", lets_in: (true, false) },
    State { name: "password !", make: "usermod -p '!' USER", lets_in: (true, false) },
    State { name: "password *", make: "usermod -p '*' USER", lets_in: (true, true) },
    State { name: "expired on day 0", make: "usermod -p '*' USER; chage -E 0 USER", lets_in: (false, false) },
    State { name: "expired on day 1", make: "usermod -p '*' USER; chage -E 1 USER", lets_in: (false, false) },
    State {
        name: "expires today",
        make: "usermod -p '*' USER; chage -E $(($(date +%s) / 86400)) USER",
        lets_in: (false, true),
    },
    State {
        name: "expires tomorrow",
        make: "usermod -p '*' USER; chage -E $(($(date +%s) / 86400 + 1)) USER",
        lets_in: (true, true),
    },
    State { name: "shell nologin", make: "usermod -p '*' -s /usr/sbin/nologin USER", lets_in: (false, false) },
    State { name: "last change 0", make: "usermod -p '*' USER; chage -d 0 -M 99 USER", lets_in: (false, true) },
];

/// States that a session is opened from.
const FROM: &[&str] = &["expired on day 1", "shell nologin", "last change 0"];

/// Back to an account that nothing is wrong with.
const FRESH: &str = "usermod -p '*' -s /bin/bash USER; chage -d 20000 -E -1 -M -1 -I -1 USER";

#[test]
fn no_state_of_the_account_lets_anybody_in_without_a_grant() -> Result<()> {
    let Some(_guest) = Guest::on("6.1") else { return Ok(()) };
    let host = Host::up()?;
    let plain = make_plain(&host)?;
    let mut cases = Cases::default();
    for state in STATES {
        cases.case(state.name, || {
            for user in [ACCOUNT, PLAIN] {
                set(FRESH, user)?;
                set(state.make, user)?;
            }
            for (port, lets, pam) in [(PAM, state.lets_in.0, "with PAM"), (NO_PAM, state.lets_in.1, "without PAM")] {
                ensure!(
                    plain.gets_in(port)? == lets,
                    "{pam} an account like any other does not behave as was measured"
                );
                ensure!(!host.key_lets_in(port)?, "{pam} the emergency account let somebody in without a grant");
            }
            // Opening edits the entry alone, which other tests try in every state; here those that need most done.
            if FROM.contains(&state.name) { from(&host, state) } else { Ok(()) }
        });
    }
    set(FRESH, ACCOUNT)?;
    shell("breakglass-agent lock")?;
    cases.verdict()
}

/// A session opens from this state, and closing leaves the one that the agent makes.
fn from(host: &Host, state: &State) -> Result<()> {
    host.with_session(state.name, |_| {
        // The agent opens the entry; a shell that refuses everybody is the administrator's doing.
        let opens = state.name != "shell nologin";
        for port in [PAM, NO_PAM] {
            ensure!(host.key_lets_in(port)? == opens, "at port {port} with a grant");
        }
        Ok(())
    })?;
    let entry = shell(&format!("getent shadow {ACCOUNT}"))?;
    ensure!(entry.starts_with("breakglass:!*:") && entry.contains(":0:"), "after closing: {entry}");
    Ok(())
}

fn set(commands: &str, user: &str) -> Result<()> {
    shell(&commands.replace("USER", user)).map(drop)
}

/// An account with the same key in a file of its own.
struct Plain<'a> {
    host: &'a Host,
}

fn make_plain(host: &Host) -> Result<Plain<'_>> {
    let key = host.path("plain");
    if !key.exists() {
        make_key(&key, PLAIN)?;
        shell(&format!(
            "useradd --create-home --shell /bin/bash {PLAIN}; install -d -o {PLAIN} -m 0700 /home/{PLAIN}/.ssh"
        ))?;
        fs::copy(key.with_extension("pub"), format!("/home/{PLAIN}/.ssh/authorized_keys"))?;
    }
    Ok(Plain { host })
}

impl Plain<'_> {
    fn gets_in(&self, port: u16) -> Result<bool> {
        let mut ssh = self.host.ssh_as(PLAIN, port, &self.host.path("plain"));
        ssh.args(["127.0.0.1", "echo in"]);
        lets_in(&mut ssh)
    }
}
