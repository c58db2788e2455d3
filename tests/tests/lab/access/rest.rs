//! Root at rest becomes the account past every gate: PAM is not asked, so it is recorded, raises an alert, and is killed before its first
//! instruction where the policy says so.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};

use super::{
    cases::Cases,
    host::{Host, PAM},
};
use crate::guest::{Guest, shell};

/// Ways that ask nobody, and the program's own argument, by which its alert is known.
const WAYS: &[(&str, &str, &str)] = &[
    ("runuser", "runuser -u breakglass -- /bin/echo WORD", "by-runuser"),
    ("setpriv", "setpriv --reuid breakglass --regid breakglass --clear-groups /bin/echo WORD", "by-setpriv"),
    ("systemd-run --uid", "systemd-run --quiet --wait --pipe --uid=breakglass /bin/echo WORD", "by-systemd-run"),
];

/// The setting as the package has it, and as the second half of the test wants it.
const POLICY: (&str, &str) = ("ungranted = \"alert\"", "ungranted = \"kill\"");

#[test]
fn root_at_rest_who_becomes_the_account_is_seen() -> Result<()> {
    let Some(_guest) = Guest::on("6.1") else { return Ok(()) };
    let host = Host::up()?;
    let mut cases = Cases::default();
    for (name, line, word) in WAYS {
        cases.case(&format!("{name}: recorded, and an alert"), || {
            let said = shell(&line.replace("WORD", word))?;
            ensure!(said.trim() == *word, "it did not run: {said}");
            let alert = host.alert(name, |alert| alert.message.contains(word))?;
            ensure!(alert.code == "exec-without-grant" && alert.process.is_some(), "{alert:?}");
            Ok(())
        });
    }
    host.restart_with(&[POLICY])?;
    for (name, line, word) in WAYS {
        cases.case(&format!("{name}: killed where the policy says so, and an alert"), || {
            let word = format!("{word}-killed");
            let output = Command::new("sh").args(["-c", &line.replace("WORD", &word)]).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(!said.contains(&word), "it ran: {said}");
            let alert = host
                .alert(name, |alert| alert.message.contains(&word) && alert.message.contains("killed before it ran"))?;
            ensure!(alert.code == "exec-without-grant", "{alert:?}");
            Ok(())
        });
    }
    cases.case("that policy leaves the operator's own session alone", || {
        host.open("not at rest", Duration::from_secs(600))?;
        ensure!(host.key_lets_in(PAM)?, "refused");
        host.close()
    });
    host.restart_with(&[(POLICY.1, POLICY.0)])?;
    cases.verdict()
}
