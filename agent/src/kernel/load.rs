//! Loading, attaching and pinning the programs.

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader,
    programs::{
        BtfTracePoint, FEntry, FExit, Lsm, Program as AyaProgram, ProgramError, ProgramInfo,
        links::{FdLink, PinnedLink},
    },
};

use super::{
    error::KernelError,
    maps,
    object::{self, Hook, Means, PROGRAMS, Program},
    pins::Pins,
};

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// How programs are loaded.
pub struct Plan<'a> {
    /// Offsets of the kernel's fields.
    pub offsets: &'a [u32],
    /// What the kernel allows.
    pub means: Means,
    /// Which load it is; not 0.
    pub load: u32,
    /// How large some maps are.
    pub sizes: Sizes,
    /// Pins of an earlier load whose maps are used on.
    pub maps_of: Option<&'a Pins>,
}

/// How large some maps are.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Bytes of the rings: audit, witness, bulk.
    pub rings: [u32; 3],
    /// Processes that can be tagged at a time.
    pub tags: u32,
}

impl Sizes {
    /// From how many tagged processes on none of them may start another, under `deny`: what is left is for those that were killed for it and
    /// take their time to end.
    fn tags_high(&self) -> u32 {
        self.tags - self.tags / 16
    }
}

/// Loads everything that is used into `pins`, of what was made by this plan, and attaches nothing. What is loaded already stays so.
pub fn load(pins: &Pins, plan: &Plan<'_>, mut ebpf: Ebpf, types: &AyaBtf) -> Result<(), KernelError> {
    for name in maps::NAMES {
        let map = ebpf.map_mut(name).ok_or(KernelError::Argument("the embedded object lacks a map"))?;
        map.pin(pins.map(name)).map_err(|e| KernelError::pin("cannot pin", pins.map(name), e))?;
    }
    for program in PROGRAMS.iter().filter(|program| program.is_used(plan.means)) {
        match load_program(&mut ebpf, program, types) {
            Ok(()) => {}
            Err(error) if program.optional => {
                tracing::info!("nothing is recorded or guarded at {}: {error}", program.hook_text());
                continue;
            }
            Err(error) => return Err(error),
        }
        let loaded = find(&mut ebpf, program)?;
        loaded
            .pin(pins.program(program.name))
            .map_err(|e| KernelError::pin("cannot pin", pins.program(program.name), e))?;
    }
    Ok(())
}

/// The kernel's types, as loading wants them; to read them takes a good part of the time that a start takes.
pub fn types() -> Result<AyaBtf, KernelError> {
    AyaBtf::from_sys_fs().map_err(|e| KernelError::Object(Box::new(e.into())))
}

/// Attaches what is loaded and always attached.
pub fn attach_always(pins: &Pins, means: Means) -> Result<(), KernelError> {
    let mut used = PROGRAMS.iter().filter(|program| program.is_always_attached() && program.is_used(means));
    used.try_for_each(|program| attach(pins, program))
}

/// Whether a program that is used is there: one that is optional need not be.
pub fn is_loaded(pins: &Pins, program: &Program) -> bool {
    !program.optional || pins.program(program.name).exists()
}

/// Makes the maps and sets the globals; loads no program.
pub fn create(plan: &Plan<'_>) -> Result<Ebpf, KernelError> {
    let by_syscall = [u32::from(!plan.means.function_exits)];
    let number = [plan.load];
    let tags_high = [plan.sizes.tags_high()];
    let [audit, witness, bulk] = plan.sizes.rings;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("OFFSETS", plan.offsets, true)
        .override_global("TERMINALS_BY_SYSCALL", &by_syscall[..], true)
        .override_global("LOAD", &number[..], true)
        .override_global("TAGS_HIGH", &tags_high[..], true)
        .map_max_entries("AUDIT", audit)
        .map_max_entries("WITNESS", witness)
        .map_max_entries("BULK", bulk)
        .map_max_entries("TAGS", plan.sizes.tags);
    if let Some(other) = plan.maps_of {
        for name in maps::NAMES {
            loader.map_pin_path(name, other.map(name));
        }
    }
    loader.load(object::OBJECT).map_err(|e| KernelError::Object(Box::new(e)))
}

/// Attempts at loading a program: a signal that is pending, as of a thread or child that ended, breaks the verifier off (kernel/bpf/verifier.c,
/// `do_check`), and nothing is wrong then.
const LOAD_ATTEMPTS: u32 = 40;

/// Verifies a program, unless it is loaded; nothing runs yet.
pub fn load_program(ebpf: &mut Ebpf, program: &Program, btf: &AyaBtf) -> Result<(), KernelError> {
    if find(ebpf, program)?.fd().is_ok() {
        return Ok(());
    }
    let mut result = load_once(ebpf, program, btf)?;
    for attempt in 1..LOAD_ATTEMPTS {
        match &result {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == std::io::ErrorKind::WouldBlock => {
                // Longer each time, up to 20 ms: signals come in flocks.
                std::thread::sleep(std::time::Duration::from_micros(u64::from(attempt) * 500));
                result = load_once(ebpf, program, btf)?;
            }
            _ => break,
        }
    }
    result.map_err(|e| refused(program, e))
}

fn load_once(ebpf: &mut Ebpf, program: &Program, btf: &AyaBtf) -> Result<Result<(), ProgramError>, KernelError> {
    let loaded = find(ebpf, program)?;
    Ok(match program.hook {
        Hook::Tracepoint(name) => {
            <&mut BtfTracePoint>::try_from(loaded).and_then(|loaded: &mut BtfTracePoint| loaded.load(name, btf))
        }
        Hook::Entry(name) => <&mut FEntry>::try_from(loaded).and_then(|loaded: &mut FEntry| loaded.load(name, btf)),
        Hook::Return(name) => <&mut FExit>::try_from(loaded).and_then(|loaded: &mut FExit| loaded.load(name, btf)),
        Hook::Security(name) => <&mut Lsm>::try_from(loaded).and_then(|loaded: &mut Lsm| loaded.load(name, btf)),
    })
}

/// What a loaded program cost to verify, where the kernel says so.
pub fn verified_instructions(ebpf: &mut Ebpf, program: &Program) -> Option<u32> {
    find(ebpf, program).ok()?.info().ok()?.verified_instruction_count()
}

fn find<'a>(ebpf: &'a mut Ebpf, program: &Program) -> Result<&'a mut AyaProgram, KernelError> {
    ebpf.program_mut(program.name).ok_or(KernelError::Argument("the embedded object lacks a program"))
}

fn refused(program: &Program, source: impl Into<BoxedError>) -> KernelError {
    KernelError::Program { program: program.name, hook: program.hook_text(), source: source.into() }
}

/// Attaches a pinned program and pins the link. Does nothing where the link is pinned already, or where the kernel has no place for
/// the program.
pub fn attach(pins: &Pins, program: &Program) -> Result<(), KernelError> {
    if !is_loaded(pins, program) {
        return Ok(());
    }
    let pin = pins.link(program.name);
    if pin.exists() {
        return PinnedLink::from_pin(&pin).map(drop).map_err(|e| KernelError::pin("cannot open", &pin, e));
    }
    let path = pins.program(program.name);
    let link = match program.hook {
        Hook::Tracepoint(_) => BtfTracePoint::from_pin(&path).and_then(link_tracepoint),
        Hook::Entry(_) => FEntry::from_pin(&path).and_then(link_entry),
        Hook::Return(_) => FExit::from_pin(&path).and_then(link_return),
        Hook::Security(_) => Lsm::from_pin(&path).and_then(link_security),
    };
    let link = link.map_err(|e| refused(program, e))?;
    link.pin(&pin).map(drop).map_err(|e| KernelError::pin("cannot pin", &pin, e))
}

/// The kernel's number of a pinned program.
pub fn program_id(pins: &Pins, program: &Program) -> Result<u32, KernelError> {
    let path = pins.program(program.name);
    let info = ProgramInfo::from_pin(&path);
    info.map(|info| info.id()).map_err(|e| KernelError::pin("cannot look at", path, e))
}

fn link_tracepoint(mut program: BtfTracePoint) -> Result<FdLink, ProgramError> {
    let id = program.attach()?;
    program.take_link(id).map(Into::into)
}

fn link_entry(mut program: FEntry) -> Result<FdLink, ProgramError> {
    let id = program.attach()?;
    program.take_link(id).map(Into::into)
}

fn link_return(mut program: FExit) -> Result<FdLink, ProgramError> {
    let id = program.attach()?;
    program.take_link(id).map(Into::into)
}

fn link_security(mut program: Lsm) -> Result<FdLink, ProgramError> {
    let id = program.attach()?;
    program.take_link(id).map(Into::into)
}

/// Detaches a program. Does nothing where it is not attached. Takes the kernel 0.25 s for system calls.
pub fn detach(pins: &Pins, program: &Program) -> Result<(), KernelError> {
    let pin = pins.link(program.name);
    match std::fs::remove_file(&pin) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KernelError::pin("cannot remove", &pin, error)),
    }
}
