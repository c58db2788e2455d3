//! What the running kernel allows, found out by asking it to verify the programs; nothing is attached.

use std::{fs, io};

use aya::Btf as AyaBtf;
use serde::Serialize;

use super::{
    btf::Btf,
    error::KernelError,
    load::{self, Sizes},
    object::{Attached, PROGRAMS, Program},
    offsets,
};
use crate::config::Tier;

/// The switch that silences every program at a function's entry or exit while leaving its link in place.
const FTRACE_SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";
/// Maps of a trial load: the least that the kernel takes.
const TRIAL: Sizes = Sizes { rings: [4096; 3], tags: 1 };

/// What a trial gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "detail")]
pub enum Verdict {
    /// The kernel takes it.
    Works,
    /// The kernel refused it, and this is why.
    Refused(String),
    /// It could not be tried, which says nothing about whether it would work.
    Unknown(String),
}

/// One program's trial.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeState {
    /// The program.
    pub program: &'static str,
    /// What it hangs on.
    pub hook: String,
    /// Whether this kernel takes it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Instructions that the kernel's verifier went through, where it says so; its limit is a million.
    pub verified_instructions: Option<u32>,
}

/// What the kernel allows.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The tier.
    pub tier: Tier,
    /// Why it is no better; empty for the best.
    pub reason: String,
    /// Every program's trial.
    pub probes: Vec<ProbeState>,
}

/// Offsets of the running kernel's fields.
pub fn offsets() -> Result<Vec<u32>, KernelError> {
    Ok(offsets::resolve(&Btf::of_running_kernel()?)?.to_vec())
}

/// Whether programs at function exits load and, as far as can be read, run.
pub fn function_exits(offsets: &[u32]) -> Verdict {
    let needed = |program: &&Program| program.attached == Attached::InSessionTrace && !program.optional;
    match try_programs(offsets, false, PROGRAMS.iter().filter(needed)) {
        Some(verdict) => verdict,
        None => match fs::read_to_string(FTRACE_SWITCH) {
            Ok(text) if text.trim() == "0" => {
                Verdict::Refused("kernel.ftrace_enabled is 0: they would load and never run".into())
            }
            Ok(_) => Verdict::Works,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Verdict::Works,
            Err(error) => Verdict::Unknown(format!("cannot read {FTRACE_SWITCH}: {error}")),
        },
    }
}

/// Asks the kernel to verify programs until it refuses one; `None` where it takes them all.
fn try_programs<'a>(offsets: &[u32], by_syscall: bool, programs: impl Iterator<Item = &'a Program>) -> Option<Verdict> {
    let mut ebpf = match load::create(offsets, by_syscall, TRIAL) {
        Ok(ebpf) => ebpf,
        Err(error) => return Some(Verdict::Unknown(with_causes(&error))),
    };
    let btf = match AyaBtf::from_sys_fs() {
        Ok(btf) => btf,
        Err(error) => return Some(Verdict::Unknown(error.to_string())),
    };
    let mut refusals = programs.filter_map(|program| load::load_program(&mut ebpf, program, &btf).err());
    refusals.next().map(|error| Verdict::Refused(with_causes(&error)))
}

/// What the kernel said to a program.
pub struct Trial {
    /// Whether it takes it.
    pub verdict: Verdict,
    /// What it cost to verify.
    pub instructions: Option<u32>,
}

impl From<Verdict> for Trial {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, instructions: None }
    }
}

/// Asks the kernel to verify one program.
pub fn try_program(offsets: &[u32], program: &Program) -> Trial {
    let by_syscall = program.attached != Attached::InSessionTrace;
    let mut ebpf = match load::create(offsets, by_syscall, TRIAL) {
        Ok(ebpf) => ebpf,
        Err(error) => return Verdict::Unknown(with_causes(&error)).into(),
    };
    let btf = match AyaBtf::from_sys_fs() {
        Ok(btf) => btf,
        Err(error) => return Verdict::Unknown(error.to_string()).into(),
    };
    match load::load_program(&mut ebpf, program, &btf) {
        Ok(()) => Trial { verdict: Verdict::Works, instructions: load::verified_instructions(&mut ebpf, program) },
        Err(error) => Verdict::Refused(with_causes(&error)).into(),
    }
}

/// Tries everything.
pub fn run() -> Findings {
    let offsets = match offsets() {
        Ok(offsets) => offsets,
        Err(error) => return none(with_causes(&error)),
    };
    let probes: Vec<ProbeState> = PROGRAMS
        .iter()
        .map(|program| {
            let Trial { verdict, instructions } = try_program(&offsets, program);
            ProbeState {
                program: program.name,
                hook: program.hook_text(),
                verdict,
                verified_instructions: instructions,
            }
        })
        .collect();
    let missing = PROGRAMS
        .iter()
        .zip(&probes)
        .find(|(program, probe)| program.attached != Attached::InSessionTrace && probe.verdict != Verdict::Works);
    if let Some((_, probe)) = missing {
        let reason = format!("{} does not load: {}", probe.hook, detail(&probe.verdict));
        return Findings { tier: Tier::None, reason, probes };
    }
    let (tier, reason) = tier_of(&function_exits(&offsets));
    Findings { tier, reason, probes }
}

/// The tier that a trial of programs at function exits gives, and why it is no better.
pub fn tier_of(function_exits: &Verdict) -> (Tier, String) {
    match function_exits {
        Verdict::Works => (Tier::Trace, "no security hooks are used yet: nothing is denied, only recorded".into()),
        Verdict::Refused(why) => (Tier::Basic, format!("programs at function exits are refused: {why}")),
        Verdict::Unknown(why) => (Tier::Basic, format!("programs at function exits could not be tried: {why}")),
    }
}

fn none(reason: String) -> Findings {
    let unknown = |program: &Program| ProbeState {
        program: program.name,
        hook: program.hook_text(),
        verdict: Verdict::Unknown(reason.clone()),
        verified_instructions: None,
    };
    let probes = PROGRAMS.iter().map(unknown).collect();
    Findings { tier: Tier::None, reason, probes }
}

fn detail(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Works => "it works",
        Verdict::Refused(why) | Verdict::Unknown(why) => why,
    }
}

/// An error and what it says it was caused by, on one line; verifier logs are cut to their last lines.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines.len().saturating_sub(3);
    match lines.first() {
        Some(first) if tail > 1 => format!("{first} … {}", lines[tail..].join(" | ")),
        _ => lines.join(" | "),
    }
}
