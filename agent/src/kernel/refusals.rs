//! What the guard refused, and which programs were not let run: from [`Refusal`] records to alerts.

use breakglass_abi::{
    Refusal, Ring, Rule,
    record::{REFUSAL_KILLED, REFUSAL_UNTAGGED},
    settings::{BY_OPTION, REASON_BLIND, REASON_GONE, REASON_RING, REASON_SPOOL, REASON_STALE},
};
use breakglass_api::v1::{self, event::Body};

use super::assemble::{Unreadable, observed, process, until_nul};
use crate::recorder::source::Observed;

/// Commands of bpf(2) that people know by name (include/uapi/linux/bpf.h).
const BPF_COMMANDS: [(u64, &str); 12] = [
    (0, "BPF_MAP_CREATE"),
    (1, "BPF_MAP_LOOKUP_ELEM"),
    (2, "BPF_MAP_UPDATE_ELEM"),
    (3, "BPF_MAP_DELETE_ELEM"),
    (5, "BPF_PROG_LOAD"),
    (7, "BPF_OBJ_GET"),
    (9, "BPF_PROG_DETACH"),
    (11, "BPF_PROG_GET_NEXT_ID"),
    (12, "BPF_MAP_GET_NEXT_ID"),
    (13, "BPF_PROG_GET_FD_BY_ID"),
    (14, "BPF_MAP_GET_FD_BY_ID"),
    (34, "BPF_LINK_DETACH"),
];

/// The alert that a record stands for.
pub fn event(ring: Ring, bytes: &[u8]) -> Result<Observed, Unreadable> {
    let refusal = Refusal::parse(bytes).ok_or(Unreadable)?;
    let rule = Rule::from_number(refusal.rule).ok_or(Unreadable)?;
    let alert = v1::Alert {
        code: rule.code().into(),
        message: message(rule, &refusal),
        process: Some(process(&refusal.header)),
    };
    Ok(observed(ring, &refusal.header, Body::Alert(alert)))
}

fn message(rule: Rule, refusal: &Refusal) -> String {
    let who = format!(
        "{} (pid {}, euid {}{})",
        text(&refusal.comm),
        refusal.header.tgid,
        refusal.euid,
        if refusal.how & REFUSAL_UNTAGGED != 0 { ", not of the session" } else { "" }
    );
    let outcome = if refusal.how & REFUSAL_KILLED != 0 { "was killed" } else { "was refused" };
    let more = match refusal.untold {
        0 => String::new(),
        untold => format!("; {untold} more attempts before this one"),
    };
    format!("{who} {outcome}: {}{more}", what(rule, refusal))
}

fn what(rule: Rule, refusal: &Refusal) -> String {
    let place = place(refusal);
    match rule {
        Rule::Exec => format!("to run {}, because {}", or(&place, "a program"), reason(refusal.value)),
        Rule::Bpf => format!("to use {}", bpf(refusal.value)),
        Rule::Pins => format!("to change {place} among the pins of the recording programs"),
        Rule::Mount => format!(
            "to mount, unmount or move at {place}, which would hide what is guarded (flags {:#x})",
            refusal.value
        ),
        Rule::Signal => format!("to send signal {} to the agent (pid {})", refusal.value, refusal.target),
        Rule::Trace => format!("to attach to the agent (pid {})", refusal.target),
        Rule::Priority => format!("to change the agent's priority, limits or process files{}", of(&place)),
        Rule::File => format!("to change {place}, which is the agent's"),
        Rule::Secret => format!("to read {place}, which is the agent's key"),
        Rule::Cgroup => format!("to write {place} of a control group that the agent is in, or could be moved to"),
        Rule::Tracing => format!("to write {place}, which changes what can be traced"),
        Rule::Sysctl => {
            format!("to write {}, by which the kernel runs programs, or stops", or(&place, "an option of a mount"))
        }
        Rule::Memory => match reach(refusal.value) {
            Some(what) => format!("to reach {what} past the kernel"),
            None => format!("to write {place}, the machine's memory"),
        },
        Rule::Device => match refusal.value {
            0 => format!("to write the disk {place} below the agent's files"),
            BY_OPTION => "to stop a file system, or the machine with it, by an option of a mount".into(),
            command => format!(
                "to freeze or shut down the file system of {place}, on which the agent's files are ({command:#x})"
            ),
        },
        Rule::Boot => "to end the machine before what was recorded is durable; try again, or let systemd do it".into(),
        Rule::Code => format!("to run code of {place}, which it did not before the session: somebody else's wish"),
        Rule::Module => "to load a kernel module".into(),
        Rule::Kexec => "to load another kernel".into(),
        Rule::Perf => "to open performance events".into(),
        Rule::Lockdown => format!("to write {place} in the security file system"),
        Rule::Uring => "to use io_uring, which policy does not allow".into(),
    }
}

/// Words for an `enum lockdown_reason` (security/security.c); 0, and what is no such number, is a file.
fn reach(value: u64) -> Option<&'static str> {
    match value {
        2 => Some("the machine's memory"),
        3 => Some("EFI's runtime services"),
        6 => Some("PCI configuration or a device's memory"),
        7 => Some("I/O ports"),
        8 => Some("the processor's model-specific registers"),
        9 => Some("ACPI's tables"),
        _ => None,
    }
}

/// The rule covers commands of tagged tasks and, by number, maps and programs of the agent's.
fn bpf(value: u64) -> String {
    match BPF_COMMANDS.iter().find(|(number, _)| *number == value) {
        Some((_, name)) => format!("bpf({name}), or a map or program of the agent's with that number ({value})"),
        None => format!("bpf({value}), or a map or program of the agent's with that number"),
    }
}

fn reason(value: u64) -> &'static str {
    match u32::try_from(value).unwrap_or(0) {
        REASON_RING => "the ring of what must not be lost is nearly full",
        REASON_STALE => "the agent has not shown itself for too long",
        REASON_GONE => "the agent has ended",
        REASON_SPOOL => "the agent's spool takes no more, or its disk does not answer",
        REASON_BLIND => "kernel programs that record or guard have been switched off",
        _ => "it could not be recorded",
    }
}

/// Folder and name, as far as the kernel programs kept them.
fn place(refusal: &Refusal) -> String {
    let (parent, name) = (text(&refusal.parent), text(&refusal.name));
    let name = if parent.is_empty() || parent == "/" { name } else { format!("{parent}/{name}") };
    match (name.is_empty(), refusal.inode) {
        (true, _) => String::new(),
        (false, 0) => format!("…{name}"),
        (false, inode) => format!("…{name} (device {}:{}, inode {inode})", refusal.dev >> 20, refusal.dev & 0xf_ffff),
    }
}

fn of(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(": {place}") }
}

fn or<'a>(place: &'a str, otherwise: &'a str) -> &'a str {
    if place.is_empty() { otherwise } else { place }
}

fn text(bytes: &[u8]) -> String {
    until_nul(bytes).escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use breakglass_abi::{Header, Kind};

    use super::*;

    fn refusal(rule: u32) -> Refusal {
        let mut comm = [0; 16];
        comm[..5].copy_from_slice(b"b\x1bsh\n");
        let mut name = [0; 32];
        name[..14].copy_from_slice(b"ftrace_enabled");
        let mut parent = [0; 32];
        parent[..6].copy_from_slice(b"kernel");
        Refusal {
            header: Header {
                len: Refusal::SIZE as u32,
                kind: Kind::Refused as u16,
                flags: 0,
                cpu: 1,
                slot: 3,
                seq: 9,
                boot_ns: 5,
                tgid: 77,
                tid: 77,
                start_ns: 4,
            },
            rule,
            euid: 0,
            value: 9,
            untold: 2,
            inode: 5,
            dev: 22,
            target: 12,
            comm,
            parent,
            name,
            how: REFUSAL_UNTAGGED,
            reserved: 0,
        }
    }

    #[test]
    fn every_rule_has_a_code_of_its_own_and_a_sentence_that_cannot_disturb_a_log() {
        let mut codes: Vec<_> = Rule::ALL.iter().map(|rule| rule.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Rule::ALL.len());
        for rule in Rule::ALL {
            let observed = event(Ring::Audit, &refusal(*rule as u32).to_bytes()).unwrap();
            assert_eq!(observed.slot, 3);
            let Some(Body::Alert(alert)) = observed.event.body else { panic!("no alert") };
            assert_eq!(alert.code, rule.code());
            assert_eq!(alert.process, Some(v1::Process { pid: 77, start_ns: 4 }));
            assert!(
                alert.message.starts_with(r"b\x1bsh\n (pid 77, euid 0, not of the session) was refused: to "),
                "{}",
                alert.message
            );
            assert!(alert.message.ends_with("; 2 more attempts before this one"), "{}", alert.message);
        }
    }

    #[test]
    fn a_rule_that_is_not_known_is_unreadable() {
        assert!(event(Ring::Audit, &refusal(9999).to_bytes()).is_err());
        let bytes = refusal(1).to_bytes();
        for len in 0..bytes.len() {
            assert!(event(Ring::Audit, &bytes[..len]).is_err());
        }
    }
}
