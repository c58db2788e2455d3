//! What the running kernel allows, found out by asking it to verify the programs; nothing is attached.

use std::{fs, io};

use aya::{Btf as AyaBtf, Ebpf};
use serde::Serialize;

use super::{
    btf::Btf,
    error::KernelError,
    load::{self, Plan, Sizes},
    lsm,
    object::{Attached, Means, PROGRAMS, Program},
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

/// Whether programs at function exits, and at security hooks, load and, as far as can be read, run.
pub fn trials(offsets: &[u32], types: &AyaBtf) -> (Verdict, Verdict) {
    match Trial::new(offsets, types, true) {
        Ok(Trial { mut ebpf, types }) => (function_exits(&mut ebpf, types), security_hooks(&mut ebpf, types)),
        Err(why) => (Verdict::Unknown(why.clone()), Verdict::Unknown(why)),
    }
}

/// Whether programs at function exits load into maps that were made for them, and run.
pub fn function_exits(ebpf: &mut Ebpf, types: &AyaBtf) -> Verdict {
    let needed = |program: &&Program| program.attached == Attached::InSessionTrace && !program.optional;
    let mut verdicts = PROGRAMS.iter().filter(needed).map(|program| verify(ebpf, types, program));
    verdicts.find(|verdict| *verdict != Verdict::Works).unwrap_or_else(run_at_functions)
}

/// Whether those that are loaded run, as far as can be read.
pub fn run_at_functions() -> Verdict {
    match fs::read_to_string(FTRACE_SWITCH) {
        Ok(text) if text.trim() == "0" => {
            Verdict::Refused("kernel.ftrace_enabled is 0: they would load and never run".into())
        }
        Ok(_) => Verdict::Works,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Verdict::Works,
        Err(error) => Verdict::Unknown(format!("cannot read {FTRACE_SWITCH}: {error}")),
    }
}

/// Whether programs at security hooks load. One stands for all; those that a kernel lacks are found when they are loaded.
pub fn security_hooks(ebpf: &mut Ebpf, types: &AyaBtf) -> Verdict {
    match lsm::has_bpf() {
        Ok(Ok(())) => {}
        Ok(Err(list)) => {
            return Verdict::Refused(format!(
                "bpf is not among the active security modules ({list}): add it to lsm= on the kernel's command line"
            ));
        }
        Err(error) => return Verdict::Unknown(format!("cannot read which security modules are active: {error}")),
    }
    let one = PROGRAMS.iter().find(|program| program.attached == Attached::Guard);
    one.map_or(Verdict::Works, |program| verify(ebpf, types, program))
}

fn verify(ebpf: &mut Ebpf, types: &AyaBtf, program: &Program) -> Verdict {
    match load::load_program(ebpf, program, types) {
        Ok(()) => Verdict::Works,
        Err(error) => Verdict::Refused(with_causes(&error)),
    }
}

/// Maps, and the kernel's types: made once for many programs, since both take longer than a program.
struct Trial<'a> {
    ebpf: Ebpf,
    types: &'a AyaBtf,
}

impl<'a> Trial<'a> {
    fn new(offsets: &[u32], types: &'a AyaBtf, function_exits: bool) -> Result<Self, String> {
        let means = Means { function_exits, security_hooks: true };
        let plan = Plan { offsets, means, load: 1, sizes: TRIAL, maps_of: None };
        let ebpf = load::create(&plan).map_err(|error| with_causes(&error))?;
        Ok(Self { ebpf, types })
    }

    /// What the kernel says to a program, and what it cost to verify.
    fn verify(&mut self, program: &Program) -> (Verdict, Option<u32>) {
        match verify(&mut self.ebpf, self.types, program) {
            Verdict::Works => (Verdict::Works, load::verified_instructions(&mut self.ebpf, program)),
            verdict => (verdict, None),
        }
    }
}

/// Tries everything.
pub fn run() -> Findings {
    let offsets = match offsets() {
        Ok(offsets) => offsets,
        Err(error) => return none(with_causes(&error)),
    };
    let types = match AyaBtf::from_sys_fs() {
        Ok(types) => types,
        Err(error) => return none(with_causes(&error)),
    };
    let mut both = [false, true].map(|function_exits| Trial::new(&offsets, &types, function_exits));
    let probes: Vec<ProbeState> = PROGRAMS
        .iter()
        .map(|program| {
            let (verdict, verified_instructions) =
                match &mut both[usize::from(program.attached == Attached::InSessionTrace)] {
                    Ok(trial) => trial.verify(program),
                    Err(why) => (Verdict::Unknown(why.clone()), None),
                };
            ProbeState { program: program.name, hook: program.hook_text(), verdict, verified_instructions }
        })
        .collect();
    let missing =
        PROGRAMS.iter().zip(&probes).find(|(program, probe)| is_needed(program) && probe.verdict != Verdict::Works);
    if let Some((_, probe)) = missing {
        let reason = format!("{} does not load: {}", probe.hook, detail(&probe.verdict));
        return Findings { tier: Tier::None, reason, probes };
    }
    let (exits, mut hooks) = trials(&offsets, &types);
    let refused = PROGRAMS.iter().zip(&probes).find(|(program, probe)| {
        program.attached == Attached::Guard && !program.optional && probe.verdict != Verdict::Works
    });
    if let (Verdict::Works, Some((_, probe))) = (&hooks, refused) {
        hooks = Verdict::Refused(format!("{} does not load: {}", probe.hook, detail(&probe.verdict)));
    }
    let (tier, reason) = tier_of(&exits, &hooks);
    Findings { tier, reason, probes }
}

/// Whether nothing is recorded without it.
fn is_needed(program: &Program) -> bool {
    !program.optional && !matches!(program.attached, Attached::InSessionTrace | Attached::Guard)
}

/// The tier that trials of programs at function exits and at security hooks give, and why it is no better. Security hooks without
/// function exits guard all the same, but the tier says how terminals are recorded too.
pub fn tier_of(function_exits: &Verdict, security_hooks: &Verdict) -> (Tier, String) {
    let because = |what, verdict: &Verdict| match verdict {
        Verdict::Works => String::new(),
        Verdict::Refused(why) => format!("programs at {what} are refused: {why}"),
        Verdict::Unknown(why) => format!("programs at {what} could not be tried: {why}"),
    };
    match (function_exits, security_hooks) {
        (Verdict::Works, Verdict::Works) => (Tier::Full, String::new()),
        (Verdict::Works, hooks) => {
            (Tier::Trace, format!("nothing is denied, only recorded: {}", because("security hooks", hooks)))
        }
        (exits, _) => (Tier::Basic, because("function exits", exits)),
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
