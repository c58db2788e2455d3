//! Keys and values of the maps that both sides touch.

use crate::layout::shared;

shared! {
    /// The one value of the map `SETTINGS`. Changed by the agent at any time.
    pub struct Settings: 24 {
        /// Uid of the emergency account; [`NO_UID`] for none.
        account_uid: u32,
        /// Number of the open session, not 0; 0 when the glass is whole.
        open_slot: u32,
        /// Bits: the `SETTING_` values.
        flags: u32,
        /// Which load of the programs is the one that works. Another load that shares these maps does nothing.
        load: u32,
        /// The load before it, while one takes over from the other; else 0.
        load_before: u32,
        /// Zero.
        reserved: u32,
    }
}

/// An exec of a tagged task that cannot be recorded or followed does not run.
pub const SETTING_DENY: u32 = 1;
/// A program that the emergency account starts while no session is open is killed before it runs.
pub const SETTING_KILL_UNGRANTED: u32 = 2;
/// A tagged task may not have a ring of `io_uring`.
pub const SETTING_NO_URING: u32 = 4;

/// No uid at all; also what the kernel uses for an unset login uid.
pub const NO_UID: u32 = u32::MAX;

shared! {
    /// Key of the map `TAGS`: one process, told apart from later ones with its number.
    pub struct ProcessKey: 16 {
        /// Thread group id in the initial pid namespace.
        tgid: u32,
        /// Zero.
        reserved: u32,
        /// `group_leader->start_boottime`, nanoseconds.
        start_ns: u64,
    }
}

shared! {
    /// Value of the map `TAGS`: the process counts as part of a session.
    pub struct Tag: 8 {
        /// The session's number; 0 when none was open.
        slot: u32,
        /// Why it is tagged: one of the `TAG_BY_` values.
        cause: u16,
        /// Bits: [`TAG_EXECUTED`].
        flags: u16,
    }
}

/// It, or what it descends from, has executed a program since it came into scope. What has not is still part of the login: its
/// descriptors are the ends of the session's stdio.
pub const TAG_EXECUTED: u16 = 1;

/// Its uid or effective uid was the emergency account's.
pub const TAG_BY_UID: u16 = 1;
/// Its audit login uid was the emergency account's.
pub const TAG_BY_LOGINUID: u16 = 2;
/// Its parent was tagged.
pub const TAG_BY_DESCENT: u16 = 3;
/// The agent found that another process had started it because the session asked for it.
pub const TAG_BY_REQUEST: u16 = 4;

shared! {
    /// Value of the map `TERMINALS`, keyed by the address of the slave's `tty_struct`.
    pub struct Terminal: 32 {
        /// Not used again in this boot.
        id: u64,
        /// Number of the session that the terminal belongs to.
        slot: u32,
        /// Pid of the terminal's session leader when last seen; 0 if it had none.
        session: u32,
        /// N of `/dev/pts/N`; of a line its device number.
        index: u32,
        /// 1 while it is known to hide what is typed. Up to date in tier `basic` only, as the next.
        hid: u32,
        /// Since when it is known to show what is typed, on the boot clock, nanoseconds: when it became a session's, or was last seen to show it
        /// again.
        shown_ns: u64,
    }
}

shared! {
    /// Key of the map `STDIO`: a pipe, or the far end of a pair of sockets.
    pub struct StdioKey: 16 {
        /// Device of the inode.
        dev: u32,
        /// Zero.
        reserved: u32,
        /// Its number.
        inode: u64,
    }
}

shared! {
    /// Value of the map `STDIO`: whose stdio passes there, and in which direction.
    pub struct StdioEnd: 24 {
        /// Start time of the process whose descriptors they were, nanoseconds.
        start_ns: u64,
        /// The process.
        tgid: u32,
        /// Number of the session.
        slot: u32,
        /// The stream that is read there, [`NO_STREAM`] for none.
        reads: u32,
        /// The stream that is written there, likewise.
        writes: u32,
    }
}

/// No stream.
pub const NO_STREAM: u32 = u32::MAX;

shared! {
    /// Key of the map `MAPPED`: executable memory that is recorded once.
    pub struct MappedKey: 24 {
        /// Number of the session.
        slot: u32,
        /// Device of the file; or of a process without one, its tgid.
        place: u32,
        /// Inode number of the file, 0 for memory without one.
        inode: u64,
        /// Start time of the process where there is no file.
        start_ns: u64,
    }
}

shared! {
    /// Value of the map `COUNTERS`: per CPU, indexed by [`crate::Ring`].
    pub struct Counter: 24 {
        /// Records produced, the dropped ones included: the sequence number of the last.
        seq: u64,
        /// Records that found the ring full.
        dropped: u64,
        /// Terminal bytes in them.
        dropped_bytes: u64,
    }
}

shared! {
    /// The one value of the map `AGENT`: whom the programs obey. Written by the agent when it starts; the kernel notes its end.
    pub struct Agent: 32 {
        /// Its process; 0 before the first one.
        tgid: u32,
        /// [`AGENT_ALIVE`] or [`AGENT_GONE`].
        state: u32,
        /// Start time of the process, in hundredths of a second, as `/proc/PID/stat` has it.
        start_ticks: u64,
        /// Inode number of its program.
        exe_inode: u64,
        /// Device of its program.
        exe_dev: u32,
        /// Inode number of its mount namespace.
        mount_ns: u32,
    }
}

/// Nanoseconds of a tick of [`Agent::start_ticks`].
pub const TICK_NS: u64 = 10_000_000;

/// The process of [`Agent`] runs.
pub const AGENT_ALIVE: u32 = 1;
/// Its last thread has ended.
pub const AGENT_GONE: u32 = 2;

shared! {
    /// The one value of the map `PULSE`: a sign of life, written by the agent several times a second.
    pub struct Pulse: 16 {
        /// `CLOCK_MONOTONIC`, which stands still while the machine sleeps, as the agent does; nanoseconds.
        beat_ns: u64,
        /// Bits: the `PULSE_` values.
        flags: u32,
        /// Age at which the agent counts as stopped, milliseconds.
        limit_ms: u32,
    }
}

/// The spool takes no more, or soon will not.
pub const PULSE_SPOOL_FULL: u32 = 1;
/// Programs of some kind do not run although they are attached.
pub const PULSE_BLIND: u32 = 2;

/// Why an exec cannot be recorded, or not with certainty: the audit ring is past its high-water mark.
pub const REASON_RING: u32 = 1;
/// The agent has not shown itself for too long.
pub const REASON_STALE: u32 = 2;
/// The agent has ended.
pub const REASON_GONE: u32 = 3;
/// [`PULSE_SPOOL_FULL`].
pub const REASON_SPOOL: u32 = 4;
/// [`PULSE_BLIND`].
pub const REASON_BLIND: u32 = 5;

shared! {
    /// Key of the map `GUARDED`: a file, folder or pin. Inode 0 stands for the whole device, with the bits of all its entries.
    pub struct GuardedKey: 16 {
        /// Device of the inode.
        dev: u32,
        /// Zero.
        reserved: u32,
        /// Its number.
        inode: u64,
    }
}

/// Value of the map `GUARDED`, bits: this inode is not written, moved, removed or mounted over.
pub const GUARD_FILE: u32 = 1;
/// Nor is anything below it.
pub const GUARD_TREE: u32 = 2;
/// A folder on the way to something guarded: it is not moved, and nothing is mounted over it.
pub const GUARD_WAY: u32 = 4;
/// Nothing below it is read by a tagged task.
pub const GUARD_SECRET: u32 = 8;
/// Pins, guarded at rest as well.
pub const GUARD_PINS: u32 = 16;
/// A control group that the agent is in, or one above it.
pub const GUARD_CGROUP: u32 = 32;
/// A folder of systemd's units: what is called `breakglass…` is not made or changed there.
pub const GUARD_UNITS: u32 = 64;
/// Nobody writes to it, the agent neither: that it is refused proves that refusals work.
pub const GUARD_CANARY: u32 = 128;

/// What is below it may also be changed by another process of the agent's program, which locks the account when the agent cannot.
pub const GUARD_SHARED: u32 = 256;

/// Code that the agent executes beside its own program, as of the C library: it is replaced, never written in place, since what is
/// written there the agent would run.
pub const GUARD_CODE: u32 = 512;

shared! {
    /// Key of the map `KNOBS`: a file by which the kernel is controlled, by names, which nobody can change there.
    pub struct Knob: 56 {
        /// Magic number of its file system.
        magic: u64,
        /// Name of its folder, the first 15 bytes, then zeros; empty for any.
        parent: [u8; 16],
        /// Its name, the first 31 bytes, then zeros.
        name: [u8; 32],
    }
}

/// Value of a refusal by [`Rule::Device`]: by an option of a mount, not by a command or a write.
pub const BY_OPTION: u64 = 1;

/// Kind of a key of the map `OWNED` (kind in the high half, the kernel's number in the low one): a map.
pub const OWNED_MAP: u64 = 1 << 32;
/// A program.
pub const OWNED_PROGRAM: u64 = 2 << 32;

shared! {
    /// Key of the map `ATTEMPTS`.
    pub struct AttemptKey: 16 {
        /// Who.
        tgid: u32,
        /// [`Rule`].
        rule: u32,
        /// Start time of the process, nanoseconds.
        start_ns: u64,
    }
}

shared! {
    /// Value of the map `ATTEMPTS`: what was refused lately, so that a loop does not fill the ring.
    pub struct Attempt: 16 {
        /// When the second began in which it is counted, `CLOCK_MONOTONIC`, nanoseconds.
        since_ns: u64,
        /// How often it was told in that second.
        told: u32,
        /// How often it was not, since it last was.
        untold: u32,
    }
}

/// Index into the map `CANARIES`: how often programs at tracepoints saw what the agent did for them to see.
pub const CANARY_TRACEPOINT: u32 = 0;
/// Those at function exits.
pub const CANARY_FUNCTION: u32 = 1;
/// Those at security hooks.
pub const CANARY_HOOK: u32 = 2;
/// How many there are.
pub const CANARIES: u32 = 3;

/// Declares the rules so that number and name cannot drift apart.
macro_rules! rules {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What was refused. Numbers are never used again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Rule {
            $($(#[$meta])* $name = $number,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Code of its alert.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The rule with this number.
            pub fn from_number(number: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|rule| *rule as u32 == number)
            }
        }
    };
}

rules! {
    /// A program that could not be recorded.
    Exec = 1, "exec-refused";
    /// `bpf()`, or one of the agent's maps or programs.
    Bpf = 2, "guard-bpf";
    /// A pin.
    Pins = 3, "guard-pins";
    /// A mount that would take pins or the agent's files away.
    Mount = 4, "guard-mount";
    /// A signal to the agent.
    Signal = 5, "guard-signal";
    /// The agent's memory or descriptors.
    Trace = 6, "guard-ptrace";
    /// The agent's priority, limits, or its files in procfs.
    Priority = 7, "guard-priority";
    /// A file of the agent's.
    File = 8, "guard-file";
    /// A key of the agent's was to be read.
    Secret = 9, "guard-secret";
    /// The agent's control group.
    Cgroup = 10, "guard-cgroup";
    /// What switches tracing off, or changes it.
    Tracing = 11, "guard-tracing";
    /// A kernel setting by which others run as root, or the kernel stops.
    Sysctl = 12, "guard-sysctl";
    /// The machine's memory, ports, registers or buses.
    Memory = 13, "guard-memory";
    /// The disk below the agent's files, or the file system that they are on.
    Device = 14, "guard-device";
    /// A kernel module.
    Module = 15, "guard-module";
    /// Another kernel.
    Kexec = 16, "guard-kexec";
    /// Performance events.
    Perf = 17, "guard-perf";
    /// The security file system.
    Lockdown = 18, "guard-lockdown";
    /// A ring of `io_uring`, where policy refuses it.
    Uring = 19, "guard-io-uring";
    /// The machine's end before what was recorded is durable.
    Boot = 20, "guard-boot";
    /// Code that the agent did not run before the session.
    Code = 21, "guard-code";
}

/// Value of the map `SLOTS`, keyed by session number: the session is being closed, its tasks may neither exec nor fork.
pub const SLOT_CLOSING: u32 = 1;

/// Errors told apart per site in the map `FAULTS`; greater ones count as the last. The index is `site * FAULT_ERRNOS + errno`.
pub const FAULT_ERRNOS: u32 = 64;

/// Declares the sites so that number and name cannot drift apart.
macro_rules! sites {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// A place in the kernel programs where a helper can fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Site {
            $($(#[$meta])* $name = $number,)*
        }

        impl Site {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Name for people.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

sites! {
    /// A tag could not be stored: the table is full.
    TagInsert = 0, "tag-insert";
    /// A terminal could not be stored: the table is full.
    TerminalInsert = 1, "terminal-insert";
    /// What has to be known at the end of a write to a terminal could not be stored.
    PendingInsert = 2, "pending-insert";
    /// The audit ring was full.
    RingAudit = 3, "ring-audit";
    /// The witness ring was full.
    RingWitness = 4, "ring-witness";
    /// The bulk ring was full.
    RingBulk = 5, "ring-bulk";
    /// Arguments could not be read.
    ReadArgv = 6, "read-argv";
    /// The environment could not be read.
    ReadEnv = 7, "read-env";
    /// A path could not be walked.
    ReadPath = 8, "read-path";
    /// A name could not be read.
    ReadName = 9, "read-name";
    /// Terminal data could not be read.
    ReadTerminal = 10, "read-terminal";
    /// A signal could not be sent.
    Signal = 11, "signal";
    /// A loop could not be run.
    Loop = 12, "loop";
    /// An end of a session's stdio could not be stored.
    StdioInsert = 13, "stdio-insert";
    /// Data of a session's stdio, or its ends, could not be read.
    ReadStdio = 14, "read-stdio";
    /// What a system call was about could not be read.
    ReadAction = 15, "read-action";
    /// What was recorded once could not be remembered.
    MappedInsert = 16, "mapped-insert";
    /// What somebody wanted to touch could not be looked at.
    ReadGuard = 20, "read-guard";
    /// That somebody was refused could not be remembered.
    AttemptInsert = 21, "attempt-insert";
}

/// Number of sites, for the size of the map.
pub const SITES: u32 = 32;

const _: () = assert!(Site::ALL.len() <= SITES as usize);
