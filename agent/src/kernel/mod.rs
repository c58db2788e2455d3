//! The kernel side: what the running kernel allows, the programs, and their records.
//!
//! [`Kernel::start`] loads the programs, or takes over those that an earlier agent left pinned and recording. [`Reader`] turns
//! their records into events. `docs/KERNEL.md` describes maps, rings and invariants.

mod actions;
mod assemble;
pub mod btf;
mod error;
mod guard;
mod life;
mod load;
mod lsm;
mod maps;
pub(crate) mod mounts;
mod object;
mod offsets;
mod options;
mod pins;
mod position;
mod probe;
mod reader;
mod refusals;
mod ring;
mod sequence;
mod statistics;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{Btf as AyaBtf, Ebpf};
use breakglass_abi::{Ring, Settings, settings::NO_UID};
use rand::RngCore;
use serde::Serialize;

pub use error::KernelError;
pub use guard::Belongings;
pub use life::{Blind, Health, Notice};
pub use maps::{HelperFailure, ProcessId, Tagger};
pub use options::{Options, STALE_AFTER, TAG_TABLE};
pub use probe::{ProbeState, Verdict};
pub use reader::Reader;
pub use statistics::ProgramStatistics;

use crate::config::Tier;
use life::Heart;
use load::Plan;
use maps::Maps;
use object::{Attached, Means, PROGRAMS};
use pins::Pins;

/// What is running.
#[derive(Clone, Debug, Serialize)]
pub struct KernelInfo {
    /// How much the kernel allows.
    pub tier: Tier,
    /// Why it is no better tier; empty for the best.
    pub tier_reason: String,
    /// Whether programs that were already recording were taken over, or their records and tags.
    pub took_over: bool,
    /// SHA-256 of the object with the programs, hex.
    pub object_sha256: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// Programs of this tier and what they hang on.
    pub programs: Vec<(&'static str, String)>,
    /// How long the kernel took to verify and attach them; `None` where they were taken over.
    pub load_time: Option<Duration>,
}

/// Records and losses of one ring, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RingCounters {
    /// Records produced, the dropped ones included.
    pub produced: u64,
    /// Records that found the ring full.
    pub dropped: u64,
    /// Terminal bytes in those.
    pub dropped_bytes: u64,
}

/// What the kernel programs counted since they were loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// By ring: audit, witness, bulk.
    pub rings: [RingCounters; 3],
    /// Helpers that failed.
    pub failures: Vec<HelperFailure>,
}

/// What `doctor` found.
#[derive(Clone, Debug, Serialize)]
pub struct Doctor {
    /// How much the kernel allows.
    pub tier: Tier,
    /// Why it is no better.
    pub reason: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// SHA-256 of the object with the programs, hex.
    pub object_sha256: String,
    /// Whether programs of this build are pinned, that is, recording.
    pub recording: bool,
    /// Every program's trial.
    pub probes: Vec<ProbeState>,
}

/// The recording programs. Dropping it leaves them recording, and, where that is the policy, lets no program of a session start.
pub struct Kernel {
    pins: Pins,
    maps: Maps,
    counters: maps::Counters,
    info: KernelInfo,
    means: Means,
    heart: Heart,
}

impl Kernel {
    /// Takes over the pinned programs of this build, or loads them. Programs of another build with the same layout hand over what
    /// they know and what nobody has read yet; they and all others are then detached.
    pub fn start(options: &Options) -> Result<(Self, Reader), KernelError> {
        if options.account_uid == 0 || options.account_uid == NO_UID {
            return Err(KernelError::Argument("the emergency account must have a uid of its own, not root's"));
        }
        let pins = options.pins();
        let begun = Instant::now();
        let started = match take_over(&pins, options) {
            Ok(Some(started)) => started,
            Ok(None) => load_new(&pins, options)?,
            Err(error) => {
                tracing::warn!("cannot take over the programs that are recording, loading new ones: {error}");
                pins.remove()?;
                load_new(&pins, options)?
            }
        };
        let load_time = (!started.took_over).then(|| begun.elapsed());
        for other in pins.remove_others()? {
            tracing::info!("detached the recording programs of another build, {other}");
        }
        let kernel = Self {
            maps: Maps::open(&pins)?,
            counters: maps::Counters::open(&pins)?,
            info: KernelInfo { load_time, ..info(&pins, &started) },
            pins,
            means: started.means,
            heart: started.heart,
        };
        let reader = Reader::open(&kernel.pins, kernel.maps.generation()?)?;
        Ok((kernel, reader))
    }

    /// How the programs are, for whoever has to act on it.
    pub fn health(&self) -> &Arc<Health> {
        self.heart.health()
    }

    /// What is running.
    pub fn info(&self) -> &KernelInfo {
        &self.info
    }

    /// Attaches the programs that run only in sessions, then counts the account's processes as `slot`'s.
    pub fn begin_session(&mut self, slot: u32) -> Result<(), KernelError> {
        if slot == 0 {
            return Err(KernelError::Argument("a session's number is not 0"));
        }
        for program in self.session_programs() {
            load::attach(&self.pins, program)?;
        }
        let settings = self.settings()?;
        self.heart.health().tell_settings(&mut self.maps, Settings { open_slot: slot, ..settings })
    }

    /// From now on every exec and fork of the session's tasks gets SIGKILL.
    pub fn closing(&mut self, slot: u32) -> Result<(), KernelError> {
        self.maps.set_closing(slot)
    }

    /// Detaches the programs that run only in sessions (up to 0.3 s each), and forgets the session's terminals and, but for processes that
    /// could not be killed, its tags.
    pub fn end_session(&mut self, slot: u32) -> Result<(), KernelError> {
        let settings = self.settings()?;
        if settings.open_slot == slot {
            self.heart.health().tell_settings(&mut self.maps, Settings { open_slot: 0, ..settings })?;
            for program in self.session_programs() {
                load::detach(&self.pins, program)?;
            }
        }
        self.maps.forget_terminals(slot)?;
        self.maps.forget_stdio(slot)?;
        for over in self.maps.closing()?.into_iter().chain([slot]) {
            match self.maps.untag(over)? {
                0 => self.maps.forget_slot(over)?,
                _ => self.maps.set_closing(over)?,
            }
        }
        Ok(())
    }

    /// What the programs were told by this agent, whatever somebody else may have told them since.
    fn settings(&self) -> Result<Settings, KernelError> {
        self.heart.health().told_settings().map_or_else(|| self.maps.settings(), Ok)
    }

    /// Processes of a session that have not ended.
    pub fn tagged(&self, slot: u32) -> Result<Vec<ProcessId>, KernelError> {
        self.maps.tagged(slot)
    }

    /// What each program of this tier cost to verify and, while `kernel.bpf_stats_enabled` is set, to run.
    pub fn statistics(&self) -> Result<Vec<ProgramStatistics>, KernelError> {
        let programs = PROGRAMS.iter().filter(|program| program.is_used(self.means));
        let loaded = programs.filter(|program| load::is_loaded(&self.pins, program));
        loaded.map(|program| ProgramStatistics::read(&self.pins, program.name)).collect()
    }

    /// For whoever finds processes that belong to a session.
    pub fn tagger(&self) -> Result<Tagger, KernelError> {
        Tagger::open(&self.pins)
    }

    /// What the programs counted.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        let mut rings = [RingCounters::default(); 3];
        for ring in Ring::ALL {
            for cpu in self.counters.read(ring)? {
                let sum = &mut rings[ring.index()];
                sum.produced += cpu.seq;
                sum.dropped += cpu.dropped;
                sum.dropped_bytes += cpu.dropped_bytes;
            }
        }
        Ok(Counters { rings, failures: self.maps.faults()? })
    }

    /// Detaches and unloads everything: recording ends.
    pub fn unload(self) -> Result<(), KernelError> {
        let Self { pins, heart, mut maps, .. } = self;
        // Or it would take back what they are told.
        drop(heart);
        // From here they do nothing. The kernel needs seconds to let go of dozens of them, for which they would go on refusing.
        let told = maps.settings().and_then(|told| maps.set_settings(Settings { load: 0, load_before: 0, ..told }));
        pins.remove().and(told)
    }

    fn session_programs(&self) -> impl Iterator<Item = &'static object::Program> + use<> {
        session_programs(self.means)
    }
}

fn session_programs(means: Means) -> impl Iterator<Item = &'static object::Program> {
    PROGRAMS.iter().filter(move |program| !program.is_always_attached() && program.is_used(means))
}

/// What this kernel allows. Changes nothing.
pub fn doctor(options: &Options) -> Doctor {
    let findings = probe::run();
    let capped = findings.tier > options.maximum_tier;
    Doctor {
        tier: findings.tier.min(options.maximum_tier),
        reason: if capped {
            format!("kernel.maximum_tier is {}; the kernel allows {}", options.maximum_tier, findings.tier)
        } else {
            findings.reason
        },
        kernel_release: kernel_release(),
        object_sha256: object::sha256(),
        recording: options.pins().complete(),
        probes: findings.probes,
    }
}

/// Programs that record.
struct Started {
    means: Means,
    /// Why the kernel gives no better tier: what trials of programs at function exits and security hooks gave.
    verdicts: Verdicts,
    took_over: bool,
    heart: Heart,
}

struct Verdicts {
    function_exits: Verdict,
    security_hooks: Verdict,
}

impl Verdicts {
    /// What can be used, and may, of what was made for all that may.
    fn find(options: &Options, ebpf: &mut Ebpf, types: &AyaBtf) -> Self {
        let may = options.means();
        let function_exits = may.function_exits.then(|| probe::function_exits(ebpf, types));
        let security_hooks = may.security_hooks.then(|| probe::security_hooks(ebpf, types));
        Self {
            function_exits: function_exits.unwrap_or_else(|| options.above_maximum()),
            security_hooks: security_hooks.unwrap_or_else(|| options.above_maximum()),
        }
    }

    /// The same of what was loaded with these means before. Only what could be better is tried.
    fn of_loaded(options: &Options, means: Means) -> Self {
        let may = options.means();
        let known = |loaded: bool, may: bool| match (loaded, may) {
            (true, _) => Some(Verdict::Works),
            (false, false) => Some(options.above_maximum()),
            (false, true) => None,
        };
        let function_exits = known(means.function_exits, may.function_exits);
        let function_exits =
            function_exits.map(|verdict| if means.function_exits { probe::run_at_functions() } else { verdict });
        match (function_exits, known(means.security_hooks, may.security_hooks)) {
            (Some(function_exits), Some(security_hooks)) => Self { function_exits, security_hooks },
            (exits, hooks) => match probe::offsets().and_then(|offsets| Ok((offsets, load::types()?))) {
                Ok((offsets, types)) => {
                    let (tried_exits, tried_hooks) = probe::trials(&offsets, &types);
                    Self { function_exits: exits.unwrap_or(tried_exits), security_hooks: hooks.unwrap_or(tried_hooks) }
                }
                Err(error) => Self::unknown(&error.to_string()),
            },
        }
    }

    fn unknown(why: &str) -> Self {
        Self { function_exits: Verdict::Unknown(why.to_owned()), security_hooks: Verdict::Unknown(why.to_owned()) }
    }

    fn means(&self) -> Means {
        Means {
            function_exits: self.function_exits == Verdict::Works,
            security_hooks: self.security_hooks == Verdict::Works,
        }
    }
}

/// Takes the pinned programs of this build over, if they are there; they must all be attached.
fn take_over(pins: &Pins, options: &Options) -> Result<Option<Started>, KernelError> {
    if !pins.complete() {
        return Ok(None);
    }
    let means = means_of(pins);
    if options.maximum_tier < Tier::Trace && means.function_exits
        || options.maximum_tier < Tier::Full && means.security_hooks
    {
        return Err(KernelError::Argument("they use more of the kernel than kernel.maximum_tier allows"));
    }
    // Nothing of a session runs until this process has made itself known.
    let heart = beat(pins, options, means)?;
    heart.tell_what_is_guarded(pins)?;
    load::attach_always(pins, means)?;
    let mut maps = Maps::open(pins)?;
    let before = maps.settings()?;
    if before.open_slot != 0 {
        // An agent may have died while it attached them.
        for program in session_programs(means) {
            load::attach(pins, program)?;
        }
    }
    heart.health().tell_settings(&mut maps, options.settings(before))?;
    heart.attached();
    if heart.health().blind().tracepoints {
        return Err(KernelError::Argument("they are attached and do not run"));
    }
    let verdicts = Verdicts::of_loaded(options, means);
    Ok(Some(Started { means, verdicts, took_over: true, heart }))
}

/// What the loaded programs use of the kernel.
fn means_of(pins: &Pins) -> Means {
    let loaded = |name: &str| pins.program(name).exists();
    Means { function_exits: loaded("pty_write_exit"), security_hooks: loaded("guard_open") }
}

/// Loads the programs, with all that the kernel allows.
fn load_new(pins: &Pins, options: &Options) -> Result<Started, KernelError> {
    let predecessor = pins.predecessor();
    // Programs of an earlier load must not find the agent stopped while this one is made: that takes seconds where the machine is slow.
    let early = |pins| {
        let means = means_of(pins);
        beat(pins, options, means).map(|heart| (means, heart))
    };
    let heart = predecessor.as_ref().map(early).transpose()?;
    let offsets = probe::offsets()?;
    let types = load::types()?;
    let plan = |means| Plan {
        offsets: &offsets,
        means,
        load: number_of_load(),
        sizes: options.sizes(),
        maps_of: predecessor.as_ref(),
    };
    // What is tried is used on where it can be: to make maps, and to verify, takes most of the time of a start.
    let mut best = plan(options.means());
    let mut ebpf = load::create(&best)?;
    let mut verdicts = Verdicts::find(options, &mut ebpf, &types);
    if verdicts.means().function_exits == best.means.function_exits {
        best.means = verdicts.means();
    } else {
        best = plan(verdicts.means());
        ebpf = load::create(&best)?;
    }
    let heart = heart.filter(|(means, _)| *means == best.means).map(|(_, heart)| heart);
    let loaded = match load_with(pins, options, &best, ebpf, &types, heart) {
        Err(KernelError::Program { program, hook, source })
            if PROGRAMS.iter().any(|known| known.name == program && known.attached == Attached::Guard) =>
        {
            let why = probe::with_causes(&KernelError::Program { program, hook, source });
            tracing::error!(why, "this host is not guarded");
            verdicts.security_hooks = Verdict::Refused(why);
            let unguarded = plan(verdicts.means());
            load_with(pins, options, &unguarded, load::create(&unguarded)?, &types, None)
        }
        loaded => loaded,
    };
    Ok(Started { means: verdicts.means(), verdicts, took_over: predecessor.is_some(), heart: loaded? })
}

/// Loads them into a folder that gets its name once everything in it works.
fn load_with(
    pins: &Pins,
    options: &Options,
    plan: &Plan<'_>,
    ebpf: Ebpf,
    types: &AyaBtf,
    heart: Option<Heart>,
) -> Result<Heart, KernelError> {
    let heart = match (heart, plan.maps_of) {
        (None, Some(pins)) => Some(beat(pins, options, plan.means)?),
        (heart, _) => heart,
    };
    let filling = pins.begin()?;
    let loaded = load::load(&filling, plan, ebpf, types).and_then(|()| begin(&filling, options, plan, heart));
    match loaded {
        Ok(heart) => {
            filling.finish(pins)?;
            // Known by the names that they have now.
            heart.renamed(pins);
            Ok(heart)
        }
        Err(error) => {
            if let Err(left) = filling.remove() {
                tracing::warn!("what was loaded before the failure is left behind: {left}");
            }
            Err(error)
        }
    }
}

fn beat(pins: &Pins, options: &Options, means: Means) -> Result<Heart, KernelError> {
    Heart::start(pins, means, options.belongings.clone(), options.stale_after)
}

/// Attaches loaded programs and puts them in charge.
fn begin(pins: &Pins, options: &Options, plan: &Plan<'_>, heart: Option<Heart>) -> Result<Heart, KernelError> {
    let mut maps = Maps::open(pins)?;
    let before = maps.settings()?;
    let fresh = Settings { load: plan.load, load_before: 0, ..options.settings(before) };
    if plan.maps_of.is_none() {
        let mut generation = [0; 16];
        rand::rng().fill_bytes(&mut generation);
        maps.set_generation(generation)?;
        maps.set_settings(fresh)?;
    }
    let heart = heart.map_or_else(|| beat(pins, options, plan.means), Ok)?;
    heart.tell_what_is_guarded(pins)?;
    load::attach_always(pins, plan.means)?;
    if before.open_slot != 0 {
        for program in session_programs(plan.means) {
            load::attach(pins, program)?;
        }
    }
    if plan.maps_of.is_some() {
        // Programs at functions and hooks of both loads work for a moment, those at tracepoints never both.
        maps.set_settings(Settings { load_before: before.load, ..fresh })?;
    }
    heart.health().tell_settings(&mut maps, fresh)?;
    heart.attached();
    Ok(heart)
}

fn number_of_load() -> u32 {
    rand::rng().next_u32().max(1)
}

fn info(pins: &Pins, started: &Started) -> KernelInfo {
    let (mut tier, mut tier_reason) =
        probe::tier_of(&started.verdicts.function_exits, &started.verdicts.security_hooks);
    let loaded = |means: Means| match (means.function_exits, means.security_hooks) {
        (true, true) => Tier::Full,
        (true, false) => Tier::Trace,
        (false, _) => Tier::Basic,
    };
    if tier > loaded(started.means) {
        // They were refused when the programs were loaded, and would be taken now.
        tier = loaded(started.means);
        tier_reason = "the programs were loaded when the kernel allowed less; unload them to load again".into();
    }
    let left = started.heart.health().tier(tier);
    if left < tier {
        tier = left;
        tier_reason = "programs are attached and do not run: somebody has switched them off".into();
    }
    let programs = PROGRAMS.iter().filter(|program| program.is_used(started.means));
    let programs = programs.filter(|program| load::is_loaded(pins, program));
    KernelInfo {
        tier,
        tier_reason,
        took_over: started.took_over,
        object_sha256: object::sha256(),
        kernel_release: kernel_release(),
        programs: programs.map(|program| (program.name, program.hook_text())).collect(),
        load_time: None,
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}
