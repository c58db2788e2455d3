//! Keys and values of the maps that both sides touch.

use crate::layout::shared;

shared! {
    /// The one value of the map `SETTINGS`. Changed by the agent at any time.
    pub struct Settings: 16 {
        /// Uid of the emergency account; [`NO_UID`] for none.
        account_uid: u32,
        /// Number of the open session, not 0; 0 when the glass is whole.
        open_slot: u32,
        /// Bits: [`SETTING_DENY`].
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

/// An exec of a tagged task that cannot be recorded or followed is killed before it runs.
pub const SETTING_DENY: u32 = 1;

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
        cause: u32,
    }
}

/// Its uid or effective uid was the emergency account's.
pub const TAG_BY_UID: u32 = 1;
/// Its audit login uid was the emergency account's.
pub const TAG_BY_LOGINUID: u32 = 2;
/// Its parent was tagged.
pub const TAG_BY_DESCENT: u32 = 3;

shared! {
    /// Value of the map `TERMINALS`, keyed by the address of the slave's `tty_struct`.
    pub struct Terminal: 24 {
        /// Not used again in this boot.
        id: u64,
        /// Number of the session that the terminal belongs to.
        slot: u32,
        /// Pid of the terminal's session leader when last seen; 0 if it had none.
        session: u32,
        /// N of `/dev/pts/N`.
        index: u32,
        /// Zero.
        reserved: u32,
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
}

/// Number of sites, for the size of the map.
pub const SITES: u32 = 16;

const _: () = assert!(Site::ALL.len() <= SITES as usize);
