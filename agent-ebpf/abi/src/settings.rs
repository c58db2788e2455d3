//! Keys and values of the maps that both sides touch.

use crate::layout::shared;

shared! {
    /// The one value of the map `SETTINGS`. Changed by the agent at any time.
    pub struct Settings: 16 {
        /// Uid of the emergency account; [`NO_UID`] for none.
        account_uid: u32,
        /// Number of the open session, not 0; 0 when the glass is whole.
        open_slot: u32,
        /// Bits: the `SETTING_` values.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

/// An exec of a tagged task that cannot be recorded or followed is killed before it runs.
pub const SETTING_DENY: u32 = 1;
/// A program that the emergency account starts while no session is open is killed before it runs.
pub const SETTING_KILL_UNGRANTED: u32 = 2;

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
    pub struct Terminal: 24 {
        /// Not used again in this boot.
        id: u64,
        /// Number of the session that the terminal belongs to.
        slot: u32,
        /// Pid of the terminal's session leader when last seen; 0 if it had none.
        session: u32,
        /// N of `/dev/pts/N`; of a line its device number.
        index: u32,
        /// Zero.
        reserved: u32,
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
    /// The state of a write under way could not be stored.
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
}

/// Number of sites, for the size of the map.
pub const SITES: u32 = 32;

const _: () = assert!(Site::ALL.len() <= SITES as usize);
