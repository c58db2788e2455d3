//! The same attacks against other recorders: auditd with a rule for programs, tlog, and script(1).
//!
//! Each runs the very script of the attack as root, outside of any session, with a mark of its own. Asked is only whether that
//! mark is anywhere in what the other has written.

use std::{fs, path::Path, process::Command, sync::Once};

use anyhow::{Context, Result};
use breakglass_tests::{machine, terminal::find};

use crate::{
    case::{Case, Way},
    stage::{Deed, Stage, finish},
};

/// Where Debian's auditd writes.
const AUDIT_LOG: &str = "/var/log/audit/audit.log";

/// Whether others have what was done; nothing where it was not tried or did not happen.
#[derive(Default)]
pub struct Findings {
    pub auditd: Option<bool>,
    pub tlog: Option<bool>,
    pub script: Option<bool>,
}

/// Only once in the whole lab: what they keep does not depend on the kernel, and trying them takes a minute.
pub fn here() -> bool {
    std::env::var("BREAKGLASS_LAB_KERNEL").is_ok_and(|kernel| kernel == "6.12")
}

/// Tries them.
pub fn try_all(stage: &mut Stage, case: &Case) -> Result<Findings> {
    let (Way::Root(script) | Way::Terminal(script) | Way::Operator(script)) = case.way else {
        return Ok(Findings::default());
    };
    if machine::find_program("tlog-rec").is_none() || machine::find_program("auditctl").is_none() {
        return Ok(Findings::default());
    }
    static RULES: Once = Once::new();
    let mut rules = Ok(String::new());
    RULES.call_once(|| {
        let rule = |arch: &str| {
            let arch = format!("arch={arch}");
            let arguments = ["-a", "always,exit", "-F", &arch, "-S", "execve,execveat", "-k", "bypass"];
            machine::run(Command::new("auditctl").args(arguments))
        };
        rules = rule("b64").and_then(|_| rule("b32"));
    });
    rules.context("auditd takes no rule")?;
    // The attack may have used up what it was made on.
    stage.ready()?;
    let deed = stage.prepare(case)?;
    let path = stage.script(&deed, script)?;
    let (ours, theirs) = (stage.folder.join("typescript"), stage.folder.join("tlog.json"));
    for old in [&ours, &theirs] {
        let _ = fs::remove_file(old);
    }
    let inner = format!("tlog-rec --writer=file --file-path={} /bin/sh {}", theirs.display(), path.display());
    finish(
        Command::new("setsid").args(["--wait", "script", "-qec", &inner]).arg(&ours).stdin(std::process::Stdio::null()),
    )?;
    let mut deed = deed;
    deed.seen = fs::read(&ours).unwrap_or_default();
    if !(case.done)(&deed) {
        return Ok(Findings::default());
    }
    Ok(Findings {
        auditd: Some(holds(Path::new(AUDIT_LOG), &deed)),
        tlog: Some(holds(&theirs, &deed)),
        script: Some(holds(&ours, &deed)),
    })
}

/// Whether a file has the mark, plain or as auditd writes what has odd characters.
fn holds(path: &Path, deed: &Deed) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    let hex: String = deed.mark.bytes().map(|byte| format!("{byte:02X}")).collect();
    find(&bytes, deed.mark.as_bytes()).is_some() || find(&bytes, hex.as_bytes()).is_some()
}
