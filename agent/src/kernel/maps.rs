//! The pinned maps, with types.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use breakglass_abi::{
    Agent, Counter, GuardedKey, Knob, ProcessKey, Pulse, Ring, Settings, StdioEnd, Terminal,
    settings::{CANARIES, FAULT_ERRNOS, SLOT_CLOSING, Site, TAG_BY_REQUEST, TAG_EXECUTED},
};

use super::{error::KernelError, pins::Pins};
use crate::procfs::Stat;

/// Every map of the object, in any order.
pub const NAMES: [&str; 26] = [
    "AGENT",
    "ATTEMPTS",
    "CANARIES_SEEN",
    "DEVICES",
    "GUARDED",
    "KNOBS",
    "OWNED",
    "PASSED",
    "PULSE",
    "AYA_LOGS",
    "AUDIT",
    "WITNESS",
    "BULK",
    "COUNTERS",
    "FAULTS",
    "GENERATION",
    "SCRATCH",
    "SETTINGS",
    "MAPPED",
    "MASTER_USERS",
    "SLOTS",
    "STDIO",
    "TAGGED",
    "TAGS",
    "TERMINALS",
    "WRITES",
];

/// Ticks of the clock in `/proc/PID/stat` (`USER_HZ`), nanoseconds.
const NS_PER_TICK: u64 = 10_000_000;

/// An element that is there already is not to be replaced (include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

const RINGS: [&str; 3] = ["AUDIT", "WITNESS", "BULK"];

/// A process of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Thread group id in the initial pid namespace.
    pub tgid: u32,
    /// Start time on `CLOCK_BOOTTIME`, nanoseconds.
    pub start_ns: u64,
}

/// A helper that failed in the kernel programs, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperFailure {
    /// Where.
    pub site: &'static str,
    /// Positive errno; 63 stands for that and all greater ones.
    pub errno: u32,
    /// How often.
    pub count: u64,
}

/// Handles to the maps that the agent uses.
pub struct Maps {
    settings: SettingsMap,
    slots: HashMap<MapData, u32, u32>,
    tags: HashMap<MapData, [u64; 2], [u32; 2]>,
    tagged_count: TaggedCount,
    terminals: HashMap<MapData, u64, [u64; 4]>,
    stdio: HashMap<MapData, [u64; 2], [u64; 3]>,
    faults: PerCpuArray<MapData, u64>,
    generation: Array<MapData, [u8; 16]>,
}

/// Counters of one ring, one entry for each CPU.
pub type CpuCounters = Vec<Counter>;

/// The counters map alone; the reader has one of its own.
pub struct Counters(PerCpuArray<MapData, [u64; 3]>);

impl Counters {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self(open(pins, "COUNTERS", Map::PerCpuArray)?))
    }

    /// Reads a ring's counters.
    pub fn read(&self, ring: Ring) -> Result<CpuCounters, KernelError> {
        let values = self.0.get(&(ring as u32), 0).map_err(|e| KernelError::map("cannot read", "COUNTERS", e))?;
        Ok(values
            .iter()
            .map(|[seq, dropped, dropped_bytes]| Counter {
                seq: *seq,
                dropped: *dropped,
                dropped_bytes: *dropped_bytes,
            })
            .collect())
    }
}

/// How many processes are tagged by the agent's own count, which the programs add to theirs: for each that it tags one more, for each that
/// it forgets one less, though others may have done the opposite.
struct TaggedCount(Array<MapData, i64>);

/// For who adds to the count; several threads do.
static COUNTING: Mutex<()> = Mutex::new(());

impl TaggedCount {
    /// The agent's element.
    const OWN: u32 = 1;

    fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self(open(pins, "TAGGED", Map::Array)?))
    }

    fn add(&mut self, change: i64) -> Result<(), KernelError> {
        let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.0.get(&Self::OWN, 0).map_err(|e| KernelError::map("cannot read", "TAGGED", e))?;
        self.0
            .set(Self::OWN, count.saturating_add(change), 0)
            .map_err(|e| KernelError::map("cannot write", "TAGGED", e))
    }
}

/// Tags processes at the agent's own wish.
pub struct Tagger {
    tags: HashMap<MapData, [u64; 2], [u32; 2]>,
    count: TaggedCount,
}

impl Tagger {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self { tags: open(pins, "TAGS", Map::HashMap)?, count: TaggedCount::open(pins)? })
    }

    /// Counts a process, and from now on what it starts, as a session's. Whether it was still there.
    pub fn tag(&mut self, process: ProcessId, slot: u32) -> Result<bool, KernelError> {
        let key = key_of(process);
        let value = [slot, u32::from(TAG_BY_REQUEST) | u32::from(TAG_EXECUTED) << 16];
        match self.tags.insert(key, value, BPF_NOEXIST) {
            Ok(()) => self.count.add(1)?,
            // Tagged already, or the table is full, which this finds out.
            Err(_) => self.tags.insert(key, value, 0).map_err(|e| KernelError::map("cannot write", "TAGS", e))?,
        }
        // The kernel forgets it when it ends. One that had ended before would stay for ever.
        let alive = is_alive(process);
        if !alive && was_there(self.tags.remove(&key)).map_err(|e| KernelError::map("cannot write", "TAGS", e))? {
            self.count.add(-1)?;
        }
        Ok(alive)
    }
}

/// Whether a process runs that has this number and started in this tick of the clock, and has not ended.
fn is_alive(process: ProcessId) -> bool {
    Stat::of(process.tgid).is_ok_and(|stat| stat.start_ticks == process.start_ns / NS_PER_TICK && !stat.ended)
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            settings: open(pins, "SETTINGS", Map::Array)?,
            slots: open(pins, "SLOTS", Map::HashMap)?,
            tags: open(pins, "TAGS", Map::HashMap)?,
            tagged_count: TaggedCount::open(pins)?,
            terminals: open(pins, "TERMINALS", Map::HashMap)?,
            stdio: open(pins, "STDIO", Map::LruHashMap)?,
            faults: open(pins, "FAULTS", Map::PerCpuArray)?,
            generation: open(pins, "GENERATION", Map::Array)?,
        })
    }

    /// What the programs are told.
    pub fn settings(&self) -> Result<Settings, KernelError> {
        read_settings(&self.settings)
    }

    /// Tells the programs.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), KernelError> {
        write_settings(&mut self.settings, settings)
    }

    /// Which load these maps are of.
    pub fn generation(&self) -> Result<[u8; 16], KernelError> {
        self.generation.get(&0, 0).map_err(|e| KernelError::map("cannot read", "GENERATION", e))
    }

    /// Marks new maps.
    pub fn set_generation(&mut self, generation: [u8; 16]) -> Result<(), KernelError> {
        self.generation.set(0, generation, 0).map_err(|e| KernelError::map("cannot write", "GENERATION", e))
    }

    /// From now on tasks of the session may neither exec nor fork.
    pub fn set_closing(&mut self, slot: u32) -> Result<(), KernelError> {
        self.slots.insert(slot, SLOT_CLOSING, 0).map_err(|e| KernelError::map("cannot write", "SLOTS", e))
    }

    /// The session is over.
    pub fn forget_slot(&mut self, slot: u32) -> Result<(), KernelError> {
        absent_is_fine(self.slots.remove(&slot)).map_err(|e| KernelError::map("cannot write", "SLOTS", e))
    }

    /// Processes of a session.
    pub fn tagged(&self, slot: u32) -> Result<Vec<ProcessId>, KernelError> {
        let mut found = Vec::new();
        for entry in self.tags.iter() {
            let (key, [tag_slot, _]) = entry.map_err(|e| KernelError::map("cannot list", "TAGS", e))?;
            if tag_slot == slot {
                found.push(process_of(key));
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Forgets the processes of a session. Those that have outlived it stay what they are, and the session closing: the next program or
    /// process that one of them starts is its end. How many there are.
    pub fn untag(&mut self, slot: u32) -> Result<usize, KernelError> {
        let mut alive = 0;
        for process in self.tagged(slot)? {
            // The agent and the init process are part of no session, whoever tagged them.
            if is_alive(process) && process.tgid != 1 && process.tgid != std::process::id() {
                alive += 1;
                continue;
            }
            let removed = was_there(self.tags.remove(&key_of(process)));
            if removed.map_err(|e| KernelError::map("cannot write", "TAGS", e))? {
                self.tagged_count.add(-1)?;
            }
        }
        Ok(alive)
    }

    /// Sessions that are closing, or were and have left somebody alive.
    pub fn closing(&self) -> Result<Vec<u32>, KernelError> {
        self.slots.keys().collect::<Result<_, _>>().map_err(|e| KernelError::map("cannot list", "SLOTS", e))
    }

    /// Forgets the terminals of a session.
    pub fn forget_terminals(&mut self, slot: u32) -> Result<(), KernelError> {
        let mut gone = Vec::new();
        for entry in self.terminals.iter() {
            let (address, words) = entry.map_err(|e| KernelError::map("cannot list", "TERMINALS", e))?;
            if terminal_of(words).is_some_and(|terminal| terminal.slot == slot) {
                gone.push(address);
            }
        }
        for address in gone {
            absent_is_fine(self.terminals.remove(&address))
                .map_err(|e| KernelError::map("cannot write", "TERMINALS", e))?;
        }
        Ok(())
    }

    /// Forgets the ends of a session's stdio.
    pub fn forget_stdio(&mut self, slot: u32) -> Result<(), KernelError> {
        let mut gone = Vec::new();
        for entry in self.stdio.iter() {
            let (key, [_, process_and_slot, _]) = entry.map_err(|e| KernelError::map("cannot list", "STDIO", e))?;
            const { assert!(StdioEnd::SIZE == size_of::<[u64; 3]>()) };
            if (process_and_slot >> 32) as u32 == slot {
                gone.push(key);
            }
        }
        for key in gone {
            absent_is_fine(self.stdio.remove(&key)).map_err(|e| KernelError::map("cannot write", "STDIO", e))?;
        }
        Ok(())
    }

    /// Every helper that failed, summed over the CPUs.
    pub fn faults(&self) -> Result<Vec<HelperFailure>, KernelError> {
        let mut found = Vec::new();
        for site in Site::ALL {
            for errno in 0..FAULT_ERRNOS {
                let index = *site as u32 * FAULT_ERRNOS + errno;
                let values = self.faults.get(&index, 0).map_err(|e| KernelError::map("cannot read", "FAULTS", e))?;
                let count = values.iter().fold(0u64, |sum, value| sum.saturating_add(*value));
                if count > 0 {
                    found.push(HelperFailure { site: site.as_str(), errno, count });
                }
            }
        }
        Ok(found)
    }
}

/// The maps by which the agent shows that it lives and says what is guarded. Handles of their own: the thread that beats must not
/// wait for anybody.
pub struct Life {
    agent: Array<MapData, [u8; Agent::SIZE]>,
    pulse: Array<MapData, [u8; Pulse::SIZE]>,
    canaries: Array<MapData, u64>,
    settings: SettingsMap,
}

impl Life {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            agent: open(pins, "AGENT", Map::Array)?,
            pulse: open(pins, "PULSE", Map::Array)?,
            canaries: open(pins, "CANARIES_SEEN", Map::Array)?,
            settings: open(pins, "SETTINGS", Map::Array)?,
        })
    }

    /// Whom the programs obey from now on.
    pub fn set_agent(&mut self, agent: Agent) -> Result<(), KernelError> {
        self.agent.set(0, agent.to_bytes(), 0).map_err(|e| KernelError::map("cannot write", "AGENT", e))
    }

    /// A sign of life.
    pub fn beat(&mut self, pulse: Pulse) -> Result<(), KernelError> {
        self.pulse.set(0, pulse.to_bytes(), 0).map_err(|e| KernelError::map("cannot write", "PULSE", e))
    }

    /// How often the programs of each kind saw what was done for them to see.
    pub fn canaries(&self) -> Result<[u64; CANARIES as usize], KernelError> {
        let mut seen = [0; CANARIES as usize];
        for (index, count) in (0..).zip(&mut seen) {
            *count = self.canaries.get(&index, 0).map_err(|e| KernelError::map("cannot read", "CANARIES_SEEN", e))?;
        }
        Ok(seen)
    }

    /// Number of the open session, 0 for none.
    pub fn open_slot(&self) -> Result<u32, KernelError> {
        self.settings().map(|settings| settings.open_slot)
    }

    /// What the programs are told.
    pub fn settings(&self) -> Result<Settings, KernelError> {
        read_settings(&self.settings)
    }

    /// Tells the programs.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), KernelError> {
        write_settings(&mut self.settings, settings)
    }
}

/// The map `SETTINGS`.
type SettingsMap = Array<MapData, [u32; 6]>;

fn read_settings(map: &SettingsMap) -> Result<Settings, KernelError> {
    let [account_uid, open_slot, flags, load, load_before, reserved] =
        map.get(&0, 0).map_err(|e| KernelError::map("cannot read", "SETTINGS", e))?;
    Ok(Settings { account_uid, open_slot, flags, load, load_before, reserved })
}

fn write_settings(map: &mut SettingsMap, settings: Settings) -> Result<(), KernelError> {
    let Settings { account_uid, open_slot, flags, load, load_before, reserved } = settings;
    map.set(0, [account_uid, open_slot, flags, load, load_before, reserved], 0)
        .map_err(|e| KernelError::map("cannot write", "SETTINGS", e))
}

/// The maps that say what is guarded.
pub struct GuardMaps {
    guarded: HashMap<MapData, [u8; GuardedKey::SIZE], u32>,
    knobs: HashMap<MapData, [u8; Knob::SIZE], u32>,
    owned: HashMap<MapData, u64, u32>,
    devices: HashMap<MapData, u32, u32>,
    passed: HashMap<MapData, u32, u32>,
}

impl GuardMaps {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            guarded: open(pins, "GUARDED", Map::HashMap)?,
            knobs: open(pins, "KNOBS", Map::HashMap)?,
            owned: open(pins, "OWNED", Map::HashMap)?,
            devices: open(pins, "DEVICES", Map::HashMap)?,
            passed: open(pins, "PASSED", Map::HashMap)?,
        })
    }

    /// Makes these the files and folders that are guarded. New ones come before old ones go.
    pub fn set_guarded(&mut self, entries: &[(GuardedKey, u32)]) -> Result<(), KernelError> {
        let entries: Vec<_> = entries.iter().map(|(key, bits)| (key.to_bytes(), *bits)).collect();
        replace(&mut self.guarded, "GUARDED", &entries)
    }

    /// Makes these the mounts on the agent's paths.
    pub fn set_passed(&mut self, mounts: &[(u32, u32)]) -> Result<(), KernelError> {
        replace(&mut self.passed, "PASSED", mounts)
    }

    /// Makes these the switches.
    pub fn set_knobs(&mut self, entries: &[(Knob, u32)]) -> Result<(), KernelError> {
        let entries: Vec<_> = entries.iter().map(|(key, rule)| (key.to_bytes(), *rule)).collect();
        replace(&mut self.knobs, "KNOBS", &entries)
    }

    /// Adds maps and programs.
    pub fn set_owned(&mut self, keys: &[u64]) -> Result<(), KernelError> {
        let entries: Vec<_> = keys.iter().map(|key| (*key, 1)).collect();
        replace(&mut self.owned, "OWNED", &entries)
    }

    /// Makes these the disks.
    pub fn set_devices(&mut self, devices: &[u32]) -> Result<(), KernelError> {
        let entries: Vec<_> = devices.iter().map(|device| (*device, 1)).collect();
        replace(&mut self.devices, "DEVICES", &entries)
    }
}

fn replace<K: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    entries: &[(K, u32)],
) -> Result<(), KernelError> {
    for (key, value) in entries {
        map.insert(*key, *value, 0).map_err(|e| KernelError::map("cannot write", name, e))?;
    }
    let old: Vec<K> =
        map.keys().filter_map(Result::ok).filter(|key| !entries.iter().any(|(new, _)| new == key)).collect();
    for key in old {
        absent_is_fine(map.remove(&key)).map_err(|e| KernelError::map("cannot write", name, e))?;
    }
    Ok(())
}

/// The kernel's number of a pinned map.
pub fn id(pins: &Pins, name: &'static str) -> Result<u32, KernelError> {
    let data = MapData::from_pin(pins.map(name)).map_err(|e| KernelError::map("cannot open", name, e))?;
    data.info().map(|info| info.id()).map_err(|e| KernelError::map("cannot look at", name, e))
}

/// A ring's descriptor and size in bytes.
pub fn open_ring(pins: &Pins, ring: Ring) -> Result<(OwnedFd, usize), KernelError> {
    let name = RINGS[ring.index()];
    let data = MapData::from_pin(pins.map(name)).map_err(|e| KernelError::map("cannot open", name, e))?;
    let size = data.info().map_err(|e| KernelError::map("cannot look at", name, e))?.max_entries();
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(|e| KernelError::map("cannot hold", name, e))?;
    Ok((fd, size as usize))
}

fn open<T>(pins: &Pins, name: &'static str, kind: fn(MapData) -> Map) -> Result<T, KernelError>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let data = MapData::from_pin(pins.map(name)).map_err(|e| KernelError::map("cannot open", name, e))?;
    T::try_from(kind(data)).map_err(|e| KernelError::map("cannot use", name, e))
}

/// Removing what is gone already is what was wanted.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    was_there(result).map(drop)
}

/// Whether something was removed.
fn was_there(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(MapError::KeyNotFound) => Ok(false),
        other => other.map(|()| true),
    }
}

fn process_of([first, start_ns]: [u64; 2]) -> ProcessId {
    ProcessId { tgid: first as u32, start_ns }
}

fn key_of(process: ProcessId) -> [u64; 2] {
    const { assert!(ProcessKey::SIZE == size_of::<[u64; 2]>()) };
    [u64::from(process.tgid), process.start_ns]
}

fn terminal_of(words: [u64; 4]) -> Option<Terminal> {
    let mut bytes = [0; Terminal::SIZE];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Terminal::parse(&bytes)
}
