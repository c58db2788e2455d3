//! Installing with dpkg, and what `doctor` makes of it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    cases::Cases,
    host::{Host, said},
};
use crate::guest::{Guest, shell};

const PACKAGES: &str = "/lab/packages";

/// Installs the packages as they come.
pub fn install() -> Result<()> {
    let output = Command::new("sh")
        .args(["-ec", &format!("exec dpkg --install {PACKAGES}/*.deb")])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("cannot run dpkg")?;
    let told = said(&output);
    println!("dpkg: {told}");
    ensure!(output.status.success(), "dpkg failed: {told}");
    ensure!(told.contains("not enrolled yet"), "the package does not say what comes next: {told}");
    ensure!(!told.contains("IGNORES"), "the drop-in has no effect: {told}");
    Ok(())
}

#[test]
fn installs_with_dpkg_and_doctor_finds_what_is_amiss() -> Result<()> {
    let Some(_guest) = Guest::on("6.12") else { return Ok(()) };
    let _host = Host::up()?;
    let mut cases = Cases::default();
    cases.case("the account is there and locked, and the services are enabled", || {
        let shadow = shell("getent shadow breakglass")?;
        ensure!(shadow.starts_with("breakglass:!*:") && shadow.contains(":0:"), "shadow: {shadow}");
        let enabled = shell("systemctl is-enabled breakglass-agent breakglass-lock")?;
        ensure!(enabled == "enabled\nenabled\n", "{enabled}");
        ensure!(shell("systemctl is-active breakglass-agent breakglass-lock")? == "active\nactive\n", "not running");
        shell("systemd-analyze verify breakglass-agent.service breakglass-lock.service 2>&1").map(drop)
    });
    cases.case("doctor finds nothing amiss", || {
        let (checks, success) = doctor()?;
        let bad: Vec<_> = checks.iter().filter(|check| check.1 == "fail" || check.1 == "unknown").collect();
        ensure!(success && bad.is_empty(), "{bad:?}");
        Ok(())
    });
    for (what, spoil, mend, check, named) in SPOILT {
        cases.case(&format!("doctor sees {what}"), || {
            shell(spoil)?;
            let found = doctor();
            shell(mend)?;
            let (checks, success) = found?;
            let failed =
                checks.iter().any(|(name, state, detail)| name == check && state == "fail" && detail.contains(named));
            ensure!(failed && !success, "{checks:?}");
            Ok(())
        });
    }
    cases.case(
        "the agent lives in the host's mount namespace, with the capabilities that it needs and no more",
        || {
            let pid = shell("systemctl show -P MainPID breakglass-agent")?;
            let namespace = |pid: &str| fs::read_link(format!("/proc/{}/ns/mnt", pid.trim()));
            ensure!(namespace(&pid)? == namespace("1")?, "the agent has a mount namespace of its own");
            let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
            let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
            let named = shell(&format!("capsh --decode={}", bounding.trim()))?;
            for capability in
                ["cap_sys_module", "cap_sys_boot", "cap_sys_time", "cap_sys_rawio", "cap_mknod", "cap_setuid"]
            {
                ensure!(!named.contains(capability), "the agent could have {capability}: {named}");
            }
            Ok(())
        },
    );
    cases.verdict()
}

/// What is broken and how, how it is mended, which check says so, and with which words.
const SPOILT: &[(&str, &str, &str, &str, &str)] = &[
    (
        "a missing Include",
        "sed -i.lab 's/^Include/#Include/' /etc/ssh/sshd_config",
        "mv /etc/ssh/sshd_config.lab /etc/ssh/sshd_config",
        "sshd",
        "00-breakglass.conf",
    ),
    (
        "an Include inside a Match",
        "sed -i.lab '/^Include/d' /etc/ssh/sshd_config; printf 'Match User nobody\nInclude /etc/ssh/sshd_config.d/*.conf\n' >> /etc/ssh/sshd_config",
        "mv /etc/ssh/sshd_config.lab /etc/ssh/sshd_config",
        "sshd",
        "00-breakglass.conf",
    ),
    (
        "an earlier file's Match all",
        "printf 'Match all\\nAuthorizedKeysFile .ssh/authorized_keys\\n' > /etc/ssh/sshd_config.d/0-first.conf",
        "rm /etc/ssh/sshd_config.d/0-first.conf",
        "sshd",
        "authorizedkeysfile",
    ),
    (
        "UsePAM no",
        "sed -i.lab 's/^UsePAM.*/UsePAM no/' /etc/ssh/sshd_config",
        "mv /etc/ssh/sshd_config.lab /etc/ssh/sshd_config",
        "sshd",
        "usepam",
    ),
    (
        "a helper that others can write",
        "chmod o+w /usr/sbin/breakglass-agent",
        "chmod o-w /usr/sbin/breakglass-agent",
        "key helper",
        "not root's alone",
    ),
    (
        "a service that does not ask the gate",
        "sed -i.lab '/gate account/d' /etc/pam.d/common-account",
        "mv /etc/pam.d/common-account.lab /etc/pam.d/common-account",
        "pam",
        "account phase",
    ),
    (
        "a line before the gate that lets everybody in",
        "sed -i.lab '1i account sufficient pam_permit.so' /etc/pam.d/common-account",
        "mv /etc/pam.d/common-account.lab /etc/pam.d/common-account",
        "pam",
        "before the gate",
    ),
    ("an account that is not locked", "usermod -p '*' -e '' breakglass", "breakglass-agent lock", "account", "enabled"),
];

/// Name, state and words of a check.
type Check = (String, String, String);

/// Every check, and whether the program was content.
fn doctor() -> Result<(Vec<Check>, bool)> {
    ensure!(Path::new("/usr/sbin/breakglass-agent").exists(), "not installed");
    let output = Command::new("breakglass-agent").args(["doctor", "--access", "--strict", "--json"]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    let checks = report.get("access").and_then(Value::as_array).context("no checks")?;
    let word = |check: &Value, key: &str| check.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let checks =
        checks.iter().map(|check| (word(check, "name"), word(check, "state"), word(check, "detail"))).collect();
    Ok((checks, output.status.success()))
}
