//! What is guarded on this host, as the kernel programs know it: inodes, names of switches, numbers of maps and programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use breakglass_abi::{
    GuardedKey, Knob, Rule,
    settings::{
        GUARD_CANARY, GUARD_CGROUP, GUARD_CODE, GUARD_FILE, GUARD_PINS, GUARD_SECRET, GUARD_SHARED, GUARD_TREE,
        GUARD_UNITS, GUARD_WAY, OWNED_MAP, OWNED_PROGRAM,
    },
};
use nix::sys::stat::{major, minor};

use super::{
    error::KernelError,
    load,
    maps::{self, GuardMaps},
    mounts,
    object::PROGRAMS,
    pins::Pins,
};
use crate::procfs;

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where block devices say what they are made of.
const BLOCK_DEVICES: &str = "/sys/dev/block";
/// Most layers of devices below a file system: a partition, a volume, encryption.
const LAYERS_MAX: usize = 8;

/// What of this host belongs to the agent, or decides over it. What does not exist is left out.
#[derive(Clone, Debug, Default)]
pub struct Belongings {
    /// Folders that nobody else changes, with everything below.
    pub trees: Vec<PathBuf>,
    /// Of those, what a session does not read either.
    pub secrets: Vec<PathBuf>,
    /// Folders that other processes of the agent's program change too.
    pub shared: Vec<PathBuf>,
    /// Single files.
    pub files: Vec<PathBuf>,
    /// Folders of systemd's, in which the agent's units are guarded by their names.
    pub units: Vec<PathBuf>,
}

/// Device and inode, as the kernel has them.
pub type Place = (u32, u64);

/// Where a path leads; `None` where it leads nowhere.
pub fn place_of(path: &Path) -> Option<Place> {
    fs::metadata(path).ok().map(|meta| place(&meta))
}

pub(super) fn place(meta: &fs::Metadata) -> Place {
    (device(meta.dev()), meta.ino())
}

/// A device number in the kernel's own encoding.
fn device(number: u64) -> u32 {
    ((major(number) as u32) << 20) | minor(number) as u32
}

/// What is guarded by numbers that can change: the agent looks them up again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Inodes.
    pub inodes: Vec<(GuardedKey, u32)>,
    /// Mounts on the way to them, by number.
    pub mounts: Vec<(u32, u32)>,
}

/// Everything that is guarded by its inode, and the mounts on the way there.
///
/// # Errors
///
/// Where the agent cannot look at its own process, and would leave something out.
pub fn guarded(belongings: &Belongings, pins: &Pins, canary: Option<Place>) -> std::io::Result<Guarded> {
    let mut found = Found { table: mounts::table(&mounts::own()?), ..Found::default() };
    for folder in &belongings.trees {
        found.add(folder, GUARD_FILE | GUARD_TREE);
    }
    for folder in &belongings.secrets {
        found.add(folder, GUARD_FILE | GUARD_TREE | GUARD_SECRET);
    }
    for folder in &belongings.shared {
        found.add(folder, GUARD_FILE | GUARD_TREE | GUARD_SHARED);
    }
    for file in &belongings.files {
        found.add(file, GUARD_FILE);
    }
    for folder in &belongings.units {
        found.add(folder, GUARD_UNITS);
        for drop_ins in drop_ins(folder) {
            found.add(&drop_ins, GUARD_FILE | GUARD_TREE);
        }
    }
    for folder in [pins.root(), pins.folder()] {
        found.add(folder, GUARD_PINS);
    }
    found.add_mount_of(pins.root());
    found.add_mountpoints();
    for folder in cgroups(&own_cgroup().unwrap_or_default()) {
        found.add(&folder, GUARD_CGROUP);
    }
    for library in executed(&procfs::read("self/maps")?) {
        found.insert(library, GUARD_CODE);
    }
    if let Some(canary) = canary {
        found.insert(canary, GUARD_CANARY);
    }
    Ok(Guarded {
        mounts: found.mounts.iter().map(|(number, bits)| (*number, *bits)).collect(),
        inodes: found.entries(),
    })
}

/// Folders with what changes the agent's units, or every service's, in a folder of systemd's.
fn drop_ins(units: &Path) -> Vec<PathBuf> {
    let changes = |name: &std::ffi::OsStr| {
        let name = name.as_encoded_bytes();
        name == b"service.d" || (name.starts_with(b"breakgla") && name.ends_with(b".d"))
    };
    let entries = fs::read_dir(units).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| changes(&entry.file_name())).map(|entry| entry.path()).collect()
}

#[derive(Default)]
struct Found {
    inodes: BTreeMap<Place, u32>,
    mounts: BTreeMap<u32, u32>,
    table: BTreeMap<u32, mounts::Mount>,
}

impl Found {
    fn insert(&mut self, place: Place, bits: u32) {
        *self.inodes.entry(place).or_default() |= bits;
    }

    /// A path, what it leads to where it is a symbolic link, and the folders on the way.
    fn add(&mut self, path: &Path, bits: u32) {
        if let Ok(meta) = fs::symlink_metadata(path)
            && meta.is_symlink()
        {
            self.insert(place(&meta), GUARD_FILE);
        }
        let Ok(real) = fs::canonicalize(path) else { return };
        if let Some(place) = place_of(&real) {
            self.insert(place, bits);
        }
        // Those below it on the way as well: whoever detaches one takes along what is mounted on it.
        for number in mounts::down_from(&self.table, mounts::of(&real)) {
            *self.mounts.entry(number).or_default() |= GUARD_WAY;
        }
        for folder in real.ancestors().skip(1) {
            if let Some(place) = place_of(folder) {
                self.insert(place, GUARD_WAY);
            }
        }
    }

    /// The root of the file system that holds the pins: mounting over it would hide them, at rest as well.
    fn add_mount_of(&mut self, path: &Path) {
        let Some((dev, _)) = place_of(path) else { return };
        let on_it = path.ancestors().take_while(|folder| place_of(folder).is_some_and(|(other, _)| other == dev));
        if let Some(root) = on_it.last().and_then(place_of) {
            self.insert(root, GUARD_PINS);
        }
        if let Some(number) = mounts::of(path) {
            *self.mounts.entry(number).or_default() |= GUARD_PINS;
        }
    }

    /// What the mounts on the way are mounted on, which nobody sees: whoever removes it in a mount namespace in which nothing is mounted
    /// there unmounts it everywhere (fs/namei.c, `vfs_rmdir`), and an unmounting spreads to what is mounted on the same.
    fn add_mountpoints(&mut self) {
        let points: Vec<_> =
            self.mounts.keys().filter_map(|number| self.table.get(number)).filter_map(mounts::below).collect();
        for place in points {
            self.insert(place, GUARD_WAY);
        }
    }

    /// With one entry for each device, so that the programs can let go of everything on other ones at once.
    fn entries(self) -> Vec<(GuardedKey, u32)> {
        let mut devices: BTreeMap<u32, u32> = BTreeMap::new();
        for ((dev, _), bits) in &self.inodes {
            *devices.entry(*dev).or_default() |= bits;
        }
        let of_devices = devices.into_iter().map(|(dev, bits)| (GuardedKey { dev, reserved: 0, inode: 0 }, bits));
        let of_inodes =
            self.inodes.into_iter().map(|((dev, inode), bits)| (GuardedKey { dev, reserved: 0, inode }, bits));
        of_devices.chain(of_inodes).collect()
    }
}

/// The files whose code a process executes, from the text of its `/proc/PID/maps` (proc_pid_maps(5)), which has devices and inodes as the kernel does:
/// `7f00-7f01 r-xp 00000000 fe:01 1234    /lib/libc.so.6`.
fn executed(maps: &str) -> BTreeSet<Place> {
    let place = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (_, mode, _, device, inode) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        let (major, minor) = device.split_once(':')?;
        let (major, minor) = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let inode = inode.parse().ok().filter(|inode| *inode != 0)?;
        mode.contains('x').then_some(((major << 20) | minor, inode))
    };
    maps.lines().filter_map(place).collect()
}

/// The agent's control group in the unified hierarchy, as `/proc/self/cgroup` has it: `/system.slice/breakglass-agent.service`.
pub fn own_cgroup() -> Option<String> {
    let text = procfs::read("self/cgroup").ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The folders of a control group and those above it; the root has nothing that could stop anybody.
fn cgroups(group: &str) -> Vec<PathBuf> {
    let relative = Path::new(group.trim_start_matches('/'));
    let folders = relative.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    folders.map(|folder| Path::new(CGROUPS).join(folder)).collect()
}

/// Moves this process to a control group, or to the nearest above it that is there and takes it: the root always does. Gives which.
pub fn enter_cgroup(group: &str) -> std::io::Result<String> {
    let mut refused = None;
    for folder in Path::new(group).ancestors() {
        let procs = Path::new(CGROUPS).join(folder.strip_prefix("/").unwrap_or(folder)).join("cgroup.procs");
        match fs::write(&procs, std::process::id().to_string()) {
            Ok(()) => return Ok(folder.display().to_string()),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
}

/// The disks below the file systems that hold these paths.
pub fn devices(belongings: &Belongings) -> Vec<u32> {
    let paths = belongings.trees.iter().chain(&belongings.secrets).chain(&belongings.files);
    let mut numbers = BTreeSet::new();
    for meta in paths.filter_map(|path| fs::metadata(path).ok()) {
        below(&format!("{}:{}", major(meta.dev()), minor(meta.dev())), LAYERS_MAX, &mut numbers);
    }
    numbers.into_iter().collect()
}

/// A block device by its numbers, the disk that it is a part of, and what it is made of.
fn below(numbers: &str, layers: usize, found: &mut BTreeSet<u32>) {
    let folder = Path::new(BLOCK_DEVICES).join(numbers);
    let Some(number) = kernel_number(numbers) else { return };
    if layers == 0 || !folder.exists() || !found.insert(number) {
        return;
    }
    let Ok(folder) = fs::canonicalize(folder) else { return };
    if folder.join("partition").exists()
        && let Ok(disk) = fs::read_to_string(folder.join("../dev"))
    {
        below(disk.trim(), layers - 1, found);
    }
    for slave in fs::read_dir(folder.join("slaves")).into_iter().flatten().filter_map(Result::ok) {
        if let Ok(numbers) = fs::read_to_string(slave.path().join("dev")) {
            below(numbers.trim(), layers - 1, found);
        }
    }
}

/// `"254:1"` in the kernel's encoding.
fn kernel_number(numbers: &str) -> Option<u32> {
    let (major, minor) = numbers.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some((major << 20) | minor)
}

/// The numbers of the maps and programs of a load.
fn owned(pins: &Pins) -> Result<Vec<u64>, KernelError> {
    let mut keys = Vec::new();
    for name in maps::NAMES {
        keys.push(OWNED_MAP | u64::from(maps::id(pins, name)?));
    }
    for program in PROGRAMS.iter().filter(|program| pins.program(program.name).exists()) {
        keys.push(OWNED_PROGRAM | u64::from(load::program_id(pins, program)?));
    }
    Ok(keys)
}

/// Tells the programs everything.
pub fn tell(pins: &Pins, belongings: &Belongings, canary: Option<Place>) -> Result<(), KernelError> {
    let mut maps = GuardMaps::open(pins)?;
    maps.set_knobs(&knobs())?;
    maps.set_owned(&owned(pins)?)?;
    maps.set_devices(&devices(belongings))?;
    let found = guarded(belongings, pins, canary)
        .map_err(|source| KernelError::Io { action: "cannot look at the agent's own process", source })?;
    set(&mut maps, &found)
}

/// Tells the programs what [`guarded`] found.
pub(super) fn set(maps: &mut GuardMaps, found: &Guarded) -> Result<(), KernelError> {
    maps.set_passed(&found.mounts)?;
    maps.set_guarded(&found.inodes)
}

const PROC: u64 = 0x9fa0;
const CGROUP2: u64 = 0x6367_7270;
const CGROUP1: u64 = 0x0027_e0eb;
const SYSFS: u64 = 0x6265_6572;

/// Files in procfs, sysfs and control groups that nobody writes to while a session is open: rule, folder (empty for any), names.
const KNOBS: &[(Rule, u64, &str, &[&str])] = &[
    // kernel/trace/, kernel/bpf/, net/core/sysctl_net_core.c
    (
        Rule::Tracing,
        PROC,
        "kernel",
        &[
            "ftrace_enabled",
            "ftrace_dump_on_oops",
            "traceoff_on_warning",
            "stack_tracer_enabled",
            "tracepoint_printk",
            "unprivileged_bpf_disabled",
            "bpf_stats_enabled",
            "perf_event_paranoid",
            "kptr_restrict",
        ],
    ),
    (Rule::Tracing, PROC, "debug", &["kprobes-optimization"]),
    (Rule::Tracing, PROC, "core", &["bpf_jit_enable", "bpf_jit_harden", "bpf_jit_kallsyms", "bpf_jit_limit"]),
    // What the kernel starts as root, and what stops it.
    (
        Rule::Sysctl,
        PROC,
        "kernel",
        &[
            "core_pattern",
            "core_pipe_limit",
            "modprobe",
            "hotplug",
            "poweroff_cmd",
            "panic",
            "panic_on_oops",
            "panic_on_warn",
            "panic_on_rcu_stall",
            "panic_on_io_nmi",
            "panic_on_unrecovered_nmi",
            "panic_print",
            "hardlockup_panic",
            "softlockup_panic",
            "hung_task_panic",
            "hung_task_timeout_secs",
            "unknown_nmi_panic",
            "oops_limit",
            "warn_limit",
            "sysrq",
            "io_uring_disabled",
            "sched_rt_runtime_us",
        ],
    ),
    (Rule::Sysctl, PROC, "usermodehelper", &["bset", "inheritable"]),
    (Rule::Sysctl, PROC, "yama", &["ptrace_scope"]),
    (Rule::Sysctl, PROC, "vm", &["panic_on_oom", "oom_kill_allocating_task"]),
    (Rule::Sysctl, PROC, "/", &["sysrq-trigger"]),
    (Rule::Memory, PROC, "/", &["kcore"]),
    // kernel/panic.c: the same as in procfs, under another name.
    (
        Rule::Sysctl,
        SYSFS,
        "parameters",
        &["panic", "panic_on_warn", "panic_on_oops", "panic_print", "pause_on_oops", "crash_kexec_post_notifiers"],
    ),
    // Where the machine finds its memory's image: writing it replaces what runs (kernel/power/hibernate.c).
    (Rule::Memory, SYSFS, "power", &["resume"]),
    // fs/ext4/sysfs.c, drivers/base/memory.c
    (Rule::Device, SYSFS, "", &["trigger_fs_error"]),
    (Rule::Memory, SYSFS, "", &["hard_offline_page", "soft_offline_page"]),
    // Documentation/admin-guide/cgroup-v1: what the kernel starts as root when a group is empty.
    (Rule::Sysctl, CGROUP1, "", &["release_agent"]),
    // Documentation/admin-guide/cgroup-v2.rst: what stops, kills or starves a group.
    (
        Rule::Cgroup,
        CGROUP2,
        "",
        &[
            "cgroup.freeze",
            "cgroup.kill",
            "cgroup.type",
            "memory.max",
            "memory.high",
            "memory.swap.max",
            "memory.zswap.max",
            "memory.reclaim",
            "memory.oom.group",
            "cpu.max",
            "cpu.weight",
            "cpu.weight.nice",
            "cpu.idle",
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.cpus.partition",
            "io.max",
            "pids.max",
        ],
    ),
];

fn knobs() -> Vec<(Knob, u32)> {
    let group = |(rule, magic, folder, names): &(Rule, u64, &str, &[&str])| -> Vec<(Knob, u32)> {
        let knob = |name: &&str| Knob { magic: *magic, parent: padded(folder), name: padded(name) };
        names.iter().map(|name| (knob(name), *rule as u32)).collect()
    };
    KNOBS.iter().flat_map(group).collect()
}

/// A name as the programs copy it: cut so that a zero remains.
fn padded<const N: usize>(name: &str) -> [u8; N] {
    let mut out = [0; N];
    for (place, byte) in out.iter_mut().take(N - 1).zip(name.bytes()) {
        *place = byte;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_switch_is_there_twice_and_none_is_cut() {
        let knobs = knobs();
        let keys: BTreeSet<_> = knobs.iter().map(|(knob, _)| knob.to_bytes()).collect();
        assert_eq!(keys.len(), knobs.len());
        for (_, _, folder, names) in KNOBS {
            assert!(folder.len() < 16 && names.iter().all(|name| name.len() < 32), "{folder} {names:?}");
        }
        assert_eq!(padded::<4>("abcdef"), *b"abc\0");
    }

    #[test]
    fn executed_is_what_is_mapped_so() {
        let maps = "7f00-7f01 r-xp 00000000 fe:01 1234    /lib/x86_64-linux-gnu/libc.so.6\n\
                    7f01-7f02 r--p 00001000 fe:01 1234    /lib/x86_64-linux-gnu/libc.so.6\n\
                    7f02-7f03 rw-p 00001000 fe:01 99      /var/lib/some file\n\
                    7f04-7f05 r-xp 00000000 00:00 0       [vdso]\n\nnonsense\n";
        assert_eq!(executed(maps), BTreeSet::from([(0xfe << 20 | 1, 1234)]));
        let own = executed(&procfs::read("self/maps").unwrap());
        assert!(own.contains(&place_of(&std::env::current_exe().unwrap()).unwrap()));
    }

    #[test]
    fn a_groups_folders_are_those_down_to_it() {
        let folders = cgroups("/system.slice/breakglass-agent.service");
        assert_eq!(
            folders,
            ["/sys/fs/cgroup/system.slice/breakglass-agent.service", "/sys/fs/cgroup/system.slice"].map(PathBuf::from)
        );
        assert!(cgroups("/").is_empty());
    }

    #[test]
    fn a_folder_is_guarded_with_the_way_to_it_and_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&state, &link).unwrap();
        let belongings = Belongings { secrets: vec![link.clone()], ..Belongings::default() };
        let pins = Pins::of_this_build(Path::new("/nonexistent"));
        let found: BTreeMap<Place, u32> = guarded(&belongings, &pins, Some((5, 6)))
            .unwrap()
            .inodes
            .into_iter()
            .map(|(key, bits)| ((key.dev, key.inode), bits))
            .collect();
        let (dev, inode) = place_of(&state).unwrap();
        assert_eq!(found[&(dev, inode)], GUARD_FILE | GUARD_TREE | GUARD_SECRET);
        assert_eq!(found[&place(&fs::symlink_metadata(&link).unwrap())], GUARD_FILE);
        assert_eq!(found[&place_of(Path::new("/")).unwrap()] & GUARD_WAY, GUARD_WAY);
        assert_eq!(found[&(5, 6)], GUARD_CANARY);
        assert_ne!(found[&(dev, 0)] & GUARD_SECRET, 0);
    }

    #[test]
    fn devices_are_numbered_as_the_kernel_does() {
        assert_eq!(kernel_number("254:1"), Some(254 << 20 | 1));
        for wrong in ["", "254", "a:1", "1:"] {
            assert_eq!(kernel_number(wrong), None);
        }
    }
}
