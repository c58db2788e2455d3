//! Loading, attaching and pinning the programs.

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader,
    programs::{
        BtfTracePoint, FEntry, FExit, Program as AyaProgram, ProgramError,
        links::{FdLink, PinnedLink},
    },
};

use super::{
    Options,
    error::KernelError,
    maps::{self, Maps},
    object::{self, Attached, Hook, PROGRAMS, Program},
    pins::Pins,
};

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Loads everything that the tier has into `pins`, attaches and pins what is always attached. `settings` are in force before the
/// first program is attached.
pub fn load(
    pins: &Pins,
    options: &Options,
    offsets: &[u32],
    terminals_by_syscall: bool,
    prepare: impl FnOnce(&mut Maps) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let sizes = Sizes { rings: [options.audit_ring, options.witness_ring, options.bulk_ring], tags: options.tag_table };
    let mut ebpf = create(offsets, terminals_by_syscall, sizes)?;
    for name in maps::NAMES {
        let map = ebpf.map_mut(name).ok_or(KernelError::Argument("the embedded object lacks a map"))?;
        map.pin(pins.map(name)).map_err(|e| KernelError::pin("cannot pin", pins.map(name), e))?;
    }
    let btf = AyaBtf::from_sys_fs().map_err(|e| KernelError::Object(Box::new(e.into())))?;
    for program in PROGRAMS.iter().filter(|program| program.in_tier(terminals_by_syscall)) {
        match load_program(&mut ebpf, program, &btf) {
            Err(error) if program.optional => {
                tracing::info!("{} is not recorded: {error}", program.hook_text());
                continue;
            }
            other => other?,
        }
        let loaded = find(&mut ebpf, program)?;
        loaded
            .pin(pins.program(program.name))
            .map_err(|e| KernelError::pin("cannot pin", pins.program(program.name), e))?;
    }
    prepare(&mut Maps::open(pins)?)?;
    for program in PROGRAMS.iter().filter(|program| program.attached == Attached::Always) {
        attach(pins, program)?;
    }
    Ok(())
}

/// How large some maps are.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Bytes of the rings: audit, witness, bulk.
    pub rings: [u32; 3],
    /// Processes that can be tagged at a time.
    pub tags: u32,
}

/// Makes the maps and sets the globals; loads no program.
pub fn create(offsets: &[u32], terminals_by_syscall: bool, sizes: Sizes) -> Result<Ebpf, KernelError> {
    let by_syscall = [u32::from(terminals_by_syscall)];
    let [audit, witness, bulk] = sizes.rings;
    EbpfLoader::new()
        .override_global("OFFSETS", offsets, true)
        .override_global("TERMINALS_BY_SYSCALL", &by_syscall[..], true)
        .map_max_entries("AUDIT", audit)
        .map_max_entries("WITNESS", witness)
        .map_max_entries("BULK", bulk)
        .map_max_entries("TAGS", sizes.tags)
        .load(object::OBJECT)
        .map_err(|e| KernelError::Object(Box::new(e)))
}

/// Verifies a program; nothing runs yet.
pub fn load_program(ebpf: &mut Ebpf, program: &Program, btf: &AyaBtf) -> Result<(), KernelError> {
    let loaded = find(ebpf, program)?;
    let result = match program.hook {
        Hook::Tracepoint(name) => {
            <&mut BtfTracePoint>::try_from(loaded).and_then(|loaded: &mut BtfTracePoint| loaded.load(name, btf))
        }
        Hook::Entry(name) => <&mut FEntry>::try_from(loaded).and_then(|loaded: &mut FEntry| loaded.load(name, btf)),
        Hook::Return(name) => <&mut FExit>::try_from(loaded).and_then(|loaded: &mut FExit| loaded.load(name, btf)),
    };
    result.map_err(|e| refused(program, e))
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
    };
    let link = link.map_err(|e| refused(program, e))?;
    link.pin(&pin).map(drop).map_err(|e| KernelError::pin("cannot pin", &pin, e))
}

/// Whether a program of the tier is there: what hangs on a driver's function need not be.
pub fn is_loaded(pins: &Pins, program: &Program) -> bool {
    !program.optional || pins.program(program.name).exists()
}

/// The kernel's number of a pinned tracepoint program.
pub fn program_id(pins: &Pins, program: &Program) -> Result<u32, KernelError> {
    let path = pins.program(program.name);
    let info = BtfTracePoint::from_pin(&path).and_then(|program| program.info());
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

/// Detaches a program. Does nothing where it is not attached. Takes the kernel 0.25 s for system calls.
pub fn detach(pins: &Pins, program: &Program) -> Result<(), KernelError> {
    let pin = pins.link(program.name);
    match std::fs::remove_file(&pin) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KernelError::pin("cannot remove", &pin, error)),
    }
}
