//! What sshd makes of its configuration for the emergency account.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{Check, State, untrusted};
use crate::program;

/// Where distributions put it.
const SSHD: &[&str] = &["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"];

/// How long it may take to read its configuration; one of its files may be a FIFO, and then it never ends.
const LIMIT: Duration = Duration::from_secs(10);

/// What must be so, and what it is good for.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("usepam", "yes", "the PAM gate is not asked"),
    ("authorizedkeysfile", "none", "a key file of the account's own would let somebody in for ever"),
    ("permituserrc", "no", "a session could run something at the next login"),
    ("permituserenvironment", "no", "a session could change what the next login runs"),
    ("trustedusercakeys", "none", "certificates are not bound to a grant"),
];

/// Whether our drop-in is in force.
pub(super) fn settings(account: &str) -> Check {
    let name = "sshd";
    match effective(account) {
        Ok(settings) => Check::of(name, &findings(&settings), "logs the account in by the agent's keys alone"),
        Err((state, why)) => Check::new(name, state, why),
    }
}

/// Whether sshd would run the key helper.
pub(super) fn helper(account: &str) -> Check {
    let name = "key helper";
    let settings = match effective(account) {
        Ok(settings) => settings,
        Err((state, why)) => return Check::new(name, state, why),
    };
    let command = settings.get("authorizedkeyscommand").map(String::as_str).unwrap_or("none");
    let program = PathBuf::from(command.split(' ').next().unwrap_or_default());
    let finding = match program.is_absolute() {
        true => untrusted(&program).map(|why| format!("sshd does not run it: {why}")),
        false => Some("sshd has no AuthorizedKeysCommand for the account".to_owned()),
    };
    Check::of(name, &finding.into_iter().collect::<Vec<_>>(), &format!("{} can be run", program.display()))
}

/// sshd's own answer, by keyword in lower case; the first value of each. Or what it means that there is none: an sshd that refuses its
/// configuration will not start again.
fn effective(account: &str) -> Result<BTreeMap<String, String>, (State, String)> {
    let unknown = |why: String| (State::Unknown, why);
    let sshd = SSHD.iter().find(|path| Path::new(path).exists());
    let sshd = sshd.ok_or_else(|| unknown("there is no sshd at its usual places".into()))?;
    let mut command = Command::new(sshd);
    command.args(["-T", "-C", &format!("user={account},host=localhost,addr=127.0.0.1")]).stdin(Stdio::null());
    let output = program::output(&mut command, LIMIT).map_err(|e| unknown(format!("{sshd}: {e}")))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().escape_debug().to_string();
        return Err((State::Fail, format!("sshd refuses its configuration: {complaint}")));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for (keyword, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        settings.entry(keyword.to_ascii_lowercase()).or_insert_with(|| value.trim().to_owned());
    }
    settings
}

fn findings(settings: &BTreeMap<String, String>) -> Vec<String> {
    let value = |keyword: &str| settings.get(keyword).map(String::as_str).unwrap_or_default();
    let mut findings: Vec<String> = EXPECTED
        .iter()
        .filter(|(keyword, expected, _)| value(keyword) != *expected)
        .map(|(keyword, expected, why)| format!("{keyword} is {:?}, not {expected}: {why}", value(keyword)))
        .collect();
    if !value("authorizedkeyscommand").contains(" keys ") {
        findings.push("AuthorizedKeysCommand is not the agent's: no key can log in".into());
    }
    let methods: Vec<&str> = value("authenticationmethods").split(' ').collect();
    if !methods.iter().any(|method| matches!(*method, "publickey" | "any")) {
        findings.push(format!("AuthenticationMethods is {:?}: a key alone does not log in", methods.join(" ")));
    }
    if !findings.is_empty() {
        findings.push("is 00-breakglass.conf the first file that sshd_config includes, outside any Match?".into());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "port 22\nusepam yes\nauthorizedkeysfile none\npermituserrc no\npermituserenvironment no\n\
        trustedusercakeys none\nauthorizedkeyscommand /usr/sbin/breakglass-agent keys --runtime /run/breakglass %u\n\
        authenticationmethods publickey keyboard-interactive\n";

    #[test]
    fn a_drop_in_that_is_in_force_and_ones_that_are_not() {
        assert_eq!(findings(&parse(GOOD)), Vec::<String>::new());
        for (from, to, named) in [
            ("usepam yes", "usepam no", "PAM gate"),
            ("authorizedkeysfile none", "authorizedkeysfile .ssh/authorized_keys", "for ever"),
            ("breakglass-agent keys", "other", "no key can log in"),
            ("publickey keyboard-interactive", "publickey,password", "a key alone"),
        ] {
            let found = findings(&parse(&GOOD.replace(from, to))).join("; ");
            assert!(found.contains(named) && found.contains("00-breakglass.conf"), "{found}");
        }
        assert!(!findings(&parse("")).is_empty());
    }
}
