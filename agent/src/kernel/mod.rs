//! The kernel side: what the running kernel allows, the programs, and their records.
//!
//! [`Kernel::start`] loads the programs, or takes over those that an earlier agent left pinned and recording. [`Reader`] turns
//! their records into events. `docs/KERNEL.md` describes maps, rings and invariants.

mod actions;
mod assemble;
pub mod btf;
mod error;
mod load;
mod maps;
mod object;
mod offsets;
mod pins;
mod position;
mod probe;
mod reader;
mod ring;
mod sequence;
mod statistics;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use breakglass_abi::{
    Ring, Settings,
    settings::{NO_UID, SETTING_DENY, SETTING_KILL_UNGRANTED},
};
use rand::RngCore;
use serde::Serialize;

pub use error::KernelError;
pub use maps::{HelperFailure, ProcessId, Tagger};
pub use probe::{ProbeState, Verdict};
pub use reader::Reader;
pub use statistics::ProgramStatistics;

use crate::config::{self, Tier};
use maps::Maps;
use object::{Attached, PROGRAMS};
use pins::Pins;

/// Processes that can be tagged at a time: twice the kernel's usual limit of processes.
pub const TAG_TABLE: u32 = 65_536;

/// What the kernel side needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder on a bpffs for maps, programs and links.
    pub pins: PathBuf,
    /// Uid of the emergency account.
    pub account_uid: u32,
    /// Bytes of the audit ring; a power of two of at least a page, as are the others.
    pub audit_ring: u32,
    /// Bytes of the witness ring.
    pub witness_ring: u32,
    /// Bytes of the bulk ring.
    pub bulk_ring: u32,
    /// Processes that can be tagged at a time: [`TAG_TABLE`] but in tests of what happens beyond.
    pub tag_table: u32,
    /// Whether an exec of a session that cannot be recorded is killed before it runs.
    pub deny_unrecorded: bool,
    /// No more of the kernel is used than this, whatever it allows.
    pub maximum_tier: Tier,
    /// Whether what the account runs while no session is open is killed before it runs.
    pub kill_ungranted: bool,
}

impl Options {
    /// From the configuration, which has checked the sizes.
    pub fn new(config: &config::Kernel, account_uid: u32) -> Self {
        let ring = |bytes: u64| u32::try_from(bytes).unwrap_or(1 << 30);
        Self {
            pins: config.pins.clone(),
            account_uid,
            audit_ring: ring(config.audit_ring),
            witness_ring: ring(config.witness_ring),
            bulk_ring: ring(config.bulk_ring),
            tag_table: TAG_TABLE,
            deny_unrecorded: true,
            maximum_tier: config.maximum_tier,
            kill_ungranted: config.ungranted == config::Ungranted::Kill,
        }
    }
}

/// What is running.
#[derive(Clone, Debug, Serialize)]
pub struct KernelInfo {
    /// How much the kernel allows.
    pub tier: Tier,
    /// Why it is no better tier; empty for the best.
    pub tier_reason: String,
    /// Whether programs that were already recording were taken over.
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

/// The recording programs. Dropping it leaves them recording.
pub struct Kernel {
    pins: Pins,
    maps: Maps,
    counters: maps::Counters,
    info: KernelInfo,
    terminals_by_syscall: bool,
}

impl Kernel {
    /// Takes over the pinned programs of this build, or loads them; then detaches those of other builds.
    pub fn start(options: &Options) -> Result<(Self, Reader), KernelError> {
        if options.account_uid == 0 || options.account_uid == NO_UID {
            return Err(KernelError::Argument("the emergency account must have a uid of its own, not root's"));
        }
        let pins = Pins::of_this_build(&options.pins);
        let took_over = match take_over(&pins, options) {
            Ok(took_over) => took_over,
            Err(error) => {
                tracing::warn!("cannot take over the programs that are recording, loading new ones: {error}");
                pins.remove()?;
                false
            }
        };
        let begun = Instant::now();
        let function_exits = if took_over { None } else { Some(load_new(&pins, options)?) };
        let load_time = begun.elapsed();
        for other in pins.remove_others()? {
            tracing::info!("detached the recording programs of another build, {other}");
        }
        let terminals_by_syscall = pins.program("syscall_enter").exists();
        let kernel = Self {
            maps: Maps::open(&pins)?,
            counters: maps::Counters::open(&pins)?,
            info: KernelInfo {
                load_time: Some(load_time).filter(|_| !took_over),
                ..info(&pins, options, function_exits, terminals_by_syscall)
            },
            pins,
            terminals_by_syscall,
        };
        let reader = Reader::open(&kernel.pins, kernel.maps.generation()?)?;
        Ok((kernel, reader))
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
        let settings = self.maps.settings()?;
        self.maps.set_settings(Settings { open_slot: slot, ..settings })
    }

    /// From now on every exec and fork of the session's tasks gets SIGKILL.
    pub fn closing(&mut self, slot: u32) -> Result<(), KernelError> {
        self.maps.set_closing(slot)
    }

    /// Detaches the programs that run only in sessions (up to 0.3 s each), and forgets the session's tags and terminals.
    pub fn end_session(&mut self, slot: u32) -> Result<(), KernelError> {
        let settings = self.maps.settings()?;
        if settings.open_slot == slot {
            self.maps.set_settings(Settings { open_slot: 0, ..settings })?;
            for program in self.session_programs() {
                load::detach(&self.pins, program)?;
            }
        }
        self.maps.forget_terminals(slot)?;
        self.maps.forget_stdio(slot)?;
        self.maps.untag(slot)?;
        self.maps.forget_slot(slot)
    }

    /// Processes of a session that have not ended.
    pub fn tagged(&self, slot: u32) -> Result<Vec<ProcessId>, KernelError> {
        self.maps.tagged(slot)
    }

    /// What each program of this tier cost to verify and, while `kernel.bpf_stats_enabled` is set, to run.
    pub fn statistics(&self) -> Result<Vec<ProgramStatistics>, KernelError> {
        let programs = PROGRAMS.iter().filter(|program| program.in_tier(self.terminals_by_syscall));
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
        self.pins.remove()
    }

    fn session_programs(&self) -> impl Iterator<Item = &'static object::Program> + use<> {
        let by_syscall = self.terminals_by_syscall;
        PROGRAMS.iter().filter(move |program| program.attached != Attached::Always && program.in_tier(by_syscall))
    }
}

/// What this kernel allows. Changes nothing.
pub fn doctor(options: &Options) -> Doctor {
    let findings = probe::run();
    Doctor {
        tier: findings.tier,
        reason: findings.reason,
        kernel_release: kernel_release(),
        object_sha256: object::sha256(),
        recording: Pins::of_this_build(&options.pins).complete(),
        probes: findings.probes,
    }
}

/// Whether pinned programs of this build are there, all attached, and know the options.
fn take_over(pins: &Pins, options: &Options) -> Result<bool, KernelError> {
    if !pins.complete() {
        return Ok(false);
    }
    if options.maximum_tier < Tier::Trace && !pins.program("syscall_enter").exists() {
        return Err(KernelError::Argument("they use more of the kernel than kernel.maximum_tier allows"));
    }
    let mut maps = Maps::open(pins)?;
    for program in PROGRAMS.iter().filter(|program| program.attached == Attached::Always) {
        load::attach(pins, program)?;
    }
    let open_slot = maps.settings()?.open_slot;
    maps.set_settings(settings(options, open_slot))?;
    Ok(true)
}

/// Loads the programs. Whether those at function exits are among them, and if not, why.
fn load_new(pins: &Pins, options: &Options) -> Result<Verdict, KernelError> {
    let offsets = probe::offsets()?;
    let function_exits = function_exits(options, &offsets);
    let by_syscall = function_exits != Verdict::Works;
    let filling = pins.begin()?;
    let loaded = load::load(&filling, options, &offsets, by_syscall, |maps| {
        let mut generation = [0; 16];
        rand::rng().fill_bytes(&mut generation);
        maps.set_generation(generation)?;
        maps.set_settings(settings(options, 0))
    });
    if let Err(error) = loaded {
        if let Err(left) = filling.remove() {
            tracing::warn!("what was loaded before the failure is left behind: {left}");
        }
        return Err(error);
    }
    filling.finish(pins)?;
    Ok(function_exits)
}

fn settings(options: &Options, open_slot: u32) -> Settings {
    let deny = if options.deny_unrecorded { SETTING_DENY } else { 0 };
    let flags = deny | if options.kill_ungranted { SETTING_KILL_UNGRANTED } else { 0 };
    Settings { account_uid: options.account_uid, open_slot, flags, reserved: 0 }
}

/// Whether programs at function exits can and may be used.
fn function_exits(options: &Options, offsets: &[u32]) -> Verdict {
    if options.maximum_tier < Tier::Trace {
        return Verdict::Refused(format!("kernel.maximum_tier is {}", options.maximum_tier));
    }
    probe::function_exits(offsets)
}

/// `found` is what was found when the programs were loaded; `None` where they were taken over.
fn info(pins: &Pins, options: &Options, found: Option<Verdict>, terminals_by_syscall: bool) -> KernelInfo {
    let took_over = found.is_none();
    let verdict = match found {
        Some(verdict) => verdict,
        None if !terminals_by_syscall => Verdict::Works,
        None => match probe::offsets() {
            Ok(offsets) => function_exits(options, &offsets),
            Err(error) => Verdict::Unknown(error.to_string()),
        },
    };
    let (tier, tier_reason) = match probe::tier_of(&verdict) {
        // They were refused when the programs were loaded, and would be taken now.
        (Tier::Trace, _) if terminals_by_syscall => {
            (Tier::Basic, "the programs were loaded when function exits were refused; unload them to load again".into())
        }
        found => found,
    };
    let programs = PROGRAMS.iter().filter(|program| program.in_tier(terminals_by_syscall));
    let programs = programs.filter(|program| load::is_loaded(pins, program));
    KernelInfo {
        tier,
        tier_reason,
        took_over,
        object_sha256: object::sha256(),
        kernel_release: kernel_release(),
        programs: programs.map(|program| (program.name, program.hook_text())).collect(),
        load_time: None,
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}
