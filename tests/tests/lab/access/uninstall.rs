//! Taking the product away: nobody is let in by what is left, and nobody else is kept out.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};

use super::host::{ACCOUNT, Host, NO_PAM, PAM};
use crate::guest::{Guest, shell};

#[test]
fn removing_ends_the_session_and_leaves_the_account_locked() -> Result<()> {
    let Some(_guest) = Guest::here() else { return Ok(()) };
    let host = Host::up()?;
    host.open("remove it", Duration::from_secs(600))?;
    ensure!(host.key_lets_in(PAM)?, "the session does not work");
    shell("DEBIAN_FRONTEND=noninteractive dpkg --remove breakglass-agent")?;
    for port in [PAM, NO_PAM] {
        ensure!(!host.key_lets_in(port)?, "the key gets in at port {port} after the removal");
    }
    let entry = shell(&format!("getent shadow {ACCOUNT}"))?;
    ensure!(entry.starts_with("breakglass:!*:") && entry.contains(":0:"), "left as {entry}");
    ensure!(!shell("cat /etc/pam.d/common-*")?.contains("breakglass"), "PAM still asks the gate");
    // Others log in as before: root by a console's login, which asks the whole stack.
    let line = "setsid --wait script -qec 'login -f root' /dev/null <<'END'\necho i''n; exit\nEND\n";
    ensure!(shell(line)?.contains("in"), "root cannot log in any more");
    shell("DEBIAN_FRONTEND=noninteractive dpkg --purge breakglass-agent breakglass-collector breakglass")?;
    ensure!(!Path::new("/etc/ssh/sshd_config.d/00-breakglass.conf").exists(), "the drop-in is left");
    ensure!(!Path::new("/var/lib/breakglass").exists(), "the state is left");
    ensure!(Path::new("/var/lib/breakglass-collector").exists(), "the evidence is gone");
    shell("systemctl stop sshd-no-pam; systemctl reset-failed").map(drop)
}
