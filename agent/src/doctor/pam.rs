//! Whether PAM asks the gate, by whatever service somebody would become the account.

use std::path::Path;

use super::{Check, State, untrusted};
use crate::regular;

/// Folder of the services.
const FOLDER: &str = "/etc/pam.d";

/// Services by which somebody becomes another user; those that a host does not have are left out.
const SERVICES: &[&str] = &["sshd", "login", "su", "su-l", "cron", "systemd-user"];

/// What a service must ask the gate, and what it is called there. `systemd-user` and `cron` authenticate nobody.
const PHASES: &[(&str, &str)] = &[("account", "gate account"), ("session", "gate session")];

/// How deep includes may nest.
const DEPTH_MAX: usize = 8;

/// Largest file that is looked at, bytes.
const FILE_MAX: u64 = 256 * 1024;

/// Whether every service asks the gate about the account.
pub(super) fn profile(account: &str) -> Check {
    profile_in(Path::new(FOLDER), account)
}

fn profile_in(folder: &Path, account: &str) -> Check {
    let name = "pam";
    let mut findings = Vec::new();
    let mut asked = 0;
    for service in SERVICES.iter().filter(|service| folder.join(service).exists()) {
        for (phase, question) in PHASES {
            let lines = lines_of(folder, service, phase, 0);
            match lines.iter().position(|line| line.contains(question) && line.contains("pam_exec.so")) {
                None => findings.push(format!("{service} does not ask the gate in its {phase} phase")),
                Some(at) => {
                    asked += 1;
                    let (before, gate) = lines.split_at(at);
                    findings.extend(gate.first().and_then(|line| line_finding(line, account)));
                    let around = before.iter().enumerate().find(|(i, line)| leads_around(line, at - i));
                    findings.extend(around.map(|(_, line)| {
                        format!("{service} may let somebody in before the gate is asked in its {phase} phase: {line}")
                    }));
                }
            }
        }
    }
    findings.sort();
    findings.dedup();
    if asked == 0 {
        return Check::new(
            name,
            State::Fail,
            "no service asks the gate, so the shadow file and the key source are the only locks; pam-auth-update --enable breakglass",
        );
    }
    Check::of(name, &findings, "every service asks the gate")
}

/// What is wrong with a line that asks the gate.
fn line_finding(line: &str, account: &str) -> Option<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let program = words.iter().find(|word| word.starts_with('/'))?;
    let named = words.iter().position(|word| *word == "--account").and_then(|at| words.get(at + 1)).copied();
    if named.unwrap_or("breakglass") != account {
        return Some(format!(
            "the gate guards {:?} and not {account:?}; give it --account {account}",
            named.unwrap_or("breakglass")
        ));
    }
    if !words.contains(&"seteuid") {
        return Some("pam_exec lacks seteuid: under another user's su the gate could not do its work".into());
    }
    untrusted(Path::new(program)).map(|why| format!("the gate cannot be trusted: {why}"))
}

/// Whether a line that stands `ahead` lines before the gate can end the phase well, or jump over the gate, pam.conf(5). Our own jump names
/// the users whom the gate is not for.
fn leads_around(line: &str, ahead: usize) -> bool {
    let ours = line.contains("pam_succeed_if.so") && line.contains("user !=");
    let first = line.split_ascii_whitespace().nth(1).unwrap_or_default();
    if !first.starts_with('[') {
        return matches!(first, "sufficient" | "binding");
    }
    let bracket = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(inside, _)| inside);
    bracket.split_ascii_whitespace().any(|pair| match pair.split_once('=') {
        Some(("success" | "default" | "ignore", "done")) => true,
        Some((_, jump)) => !ours && jump.parse::<usize>().is_ok_and(|jump| jump >= ahead),
        None => false,
    })
}

/// The lines of one phase of a service, with what it includes.
fn lines_of(folder: &Path, service: &str, phase: &str, depth: usize) -> Vec<String> {
    let path = folder.join(service);
    if depth > DEPTH_MAX || service.contains('/') {
        return Vec::new();
    }
    let text = regular::read_to_string(&path, FILE_MAX).unwrap_or_default().replace("\\\n", " ");
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "@include" {
            lines.extend(lines_of(folder, words.next().unwrap_or_default(), phase, depth + 1));
        } else if first.trim_start_matches('-') == phase {
            match (words.next(), words.next()) {
                (Some("include" | "substack"), Some(other)) => lines.extend(lines_of(folder, other, phase, depth + 1)),
                _ => lines.push(line.to_owned()),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const ACCOUNT: &str = "account [success=1 default=ignore] pam_succeed_if.so quiet user != bg\n\
        account required pam_exec.so seteuid quiet /bin/true gate account --account bg\n";
    const SESSION: &str =
        "session required pam_exec.so seteuid quiet type=open_session /bin/true gate session --account bg\n";

    #[test]
    fn through_includes_of_both_kinds() {
        let dir = folder(&[
            ("common-account", ACCOUNT),
            ("common-session", SESSION),
            ("sshd", "@include common-account\n@include common-session\n"),
            ("login", "account include common-account\nsession substack common-session\n"),
        ]);
        let check = profile_in(dir.path(), "bg");
        assert_eq!(check.state, State::Ok, "{}", check.detail);
        assert!(profile_in(dir.path(), "other").detail.contains("--account other"));
        fs::write(dir.path().join("su"), "@include common-account\n").unwrap();
        assert!(profile_in(dir.path(), "bg").detail.contains("su does not ask the gate in its session phase"));
    }

    #[test]
    fn ways_around_the_gate_in_the_same_stack() {
        let stack = "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\n\
            account required pam_permit.so\n";
        let whole = |first: &str| format!("{first}{stack}{ACCOUNT}{SESSION}");
        let dir = folder(&[("sshd", &whole(""))]);
        let state = |first: &str| {
            fs::write(dir.path().join("sshd"), whole(first)).unwrap();
            profile_in(dir.path(), "bg")
        };
        assert_eq!(state("").state, State::Ok, "{}", state("").detail);
        for around in [
            "account sufficient pam_permit.so\n",
            "account [success=done default=ignore] pam_localuser.so\n",
            "account [success=5 default=ignore] pam_localuser.so\n",
        ] {
            let check = state(around);
            assert!(
                check.state == State::Fail && check.detail.contains("before the gate"),
                "{around}: {}",
                check.detail
            );
        }
        assert_eq!(state("account [success=3 default=ignore] pam_localuser.so\n").state, State::Ok);
    }

    #[test]
    fn a_service_that_is_a_trap_asks_nobody() {
        let dir = folder(&[("sshd", &format!("{ACCOUNT}{SESSION}"))]);
        regular::tests::trap(&dir.path().join("su"));
        let check = regular::tests::untrapped(move || profile_in(dir.path(), "bg"));
        assert!(check.state == State::Fail && check.detail.contains("su does not ask"), "{}", check.detail);
    }

    #[test]
    fn without_a_profile_and_in_a_circle() {
        let dir = folder(&[(
            "sshd",
            "@include sshd\naccount required pam_unix.so\n#account required pam_exec.so gate account\n",
        )]);
        let check = profile_in(dir.path(), "bg");
        assert!(check.state == State::Fail && check.detail.contains("pam-auth-update"), "{}", check.detail);
    }
}
