//! Records on the rings.

use crate::layout::shared;

/// The ring that a record travels on; also the index into `COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Ring {
    /// What must never be lost.
    Audit = 0,
    /// What happens beside a session.
    Witness = 1,
    /// Terminal output.
    Bulk = 2,
}

impl Ring {
    /// All rings, in index order.
    pub const ALL: [Self; 3] = [Self::Audit, Self::Witness, Self::Bulk];

    /// Index into per-ring tables.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What a record is. Numbers are never used again; the gaps are for later kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`Exec`]: a program was started. Closes the set that `ExecPart` records of the same CPU began.
    Exec = 10,
    /// [`Chunk`] of an exec's arguments or environment that did not fit into its [`Exec`] record.
    ExecPart = 11,
    /// [`ExecFailed`].
    ExecFailed = 12,
    /// [`Fork`].
    Fork = 20,
    /// [`Exit`].
    Exit = 21,
    /// [`Chunk`] of terminal output.
    TerminalOutput = 40,
    /// [`Chunk`] of typed input.
    TerminalInput = 41,
    /// [`Withheld`].
    TerminalWithheld = 42,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        [
            Self::Exec,
            Self::ExecPart,
            Self::ExecFailed,
            Self::Fork,
            Self::Exit,
            Self::TerminalOutput,
            Self::TerminalInput,
            Self::TerminalWithheld,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == number)
    }
}

shared! {
    /// Front of every record.
    pub struct Header: 48 {
        /// Length of the whole record, bytes.
        len: u32,
        /// [`Kind`].
        kind: u16,
        /// Bits: the `FLAG_` values.
        flags: u16,
        /// The CPU that numbered the record.
        cpu: u32,
        /// Number of the session that the record belongs to; 0 for none.
        slot: u32,
        /// From 1, without holes, per ring and CPU.
        seq: u64,
        /// `CLOCK_BOOTTIME`, nanoseconds.
        boot_ns: u64,
        /// The process.
        tgid: u32,
        /// The thread.
        tid: u32,
        /// `group_leader->start_boottime`, nanoseconds.
        start_ns: u64,
    }
}

/// The process (or, in a [`Fork`], the child) could not be tagged: the table is full.
pub const FLAG_UNTAGGED: u16 = 1;
/// The task was sent SIGKILL: its session is closing, or it cannot be recorded.
pub const FLAG_KILLED: u16 = 2;

shared! {
    /// A program was started. Followed by `path`, `cwd`, `filename`, `interp`, then `argv` and `env` where they are short
    /// enough to be [`PART_INLINE`], each as many bytes as its length says.
    pub struct Exec: 216 {
        /// The process; `kind` is [`Kind::Exec`].
        header: Header,
        /// Start time of the parent, nanoseconds.
        parent_start_ns: u64,
        /// Size of the argument area, bytes.
        argv_bytes: u64,
        /// Size of the environment area, bytes.
        env_bytes: u64,
        /// Effective capabilities.
        cap_effective: u64,
        /// Inode number of the executable.
        inode: u64,
        /// Id of the cgroup in the default hierarchy.
        cgroup_id: u64,
        /// Id of the recorded terminal, 0 if none.
        terminal: u64,
        /// The parent.
        parent_tgid: u32,
        /// Real user id.
        uid: u32,
        /// Real group id.
        gid: u32,
        /// Saved user id.
        suid: u32,
        /// Saved group id.
        sgid: u32,
        /// Effective user id.
        euid: u32,
        /// Effective group id.
        egid: u32,
        /// Audit login uid.
        loginuid: u32,
        /// Audit session id.
        audit_session: u32,
        /// Device of the executable, kernel encoding (major << 20 | minor).
        dev: u32,
        /// Link count of the executable.
        links: u32,
        /// Mode of the executable.
        mode: u32,
        /// Inode number of the pid namespace.
        pid_ns: u32,
        /// Inode number of the mount namespace.
        mount_ns: u32,
        /// Inode number of the user namespace.
        user_ns: u32,
        /// Inode number of the network namespace.
        net_ns: u32,
        /// Device of the controlling terminal, kernel encoding; 0 if none.
        tty: u32,
        /// Bits: the `FAULT_` values.
        faults: u32,
        /// How `path` and `cwd` ended: `WALK_` bits of `path`, and of `cwd` shifted left by 16.
        walks: u32,
        /// How the arguments were sent: a `PART_` value; the environment's shifted left by 16.
        parts: u32,
        /// Length of the path of the executable: components, deepest first, a NUL after each.
        path_len: u16,
        /// Length of the working directory, likewise.
        cwd_len: u16,
        /// Length of the name as the caller gave it, NUL included.
        filename_len: u16,
        /// Length of the interpreter's name, NUL included; 0 where it equals `filename`.
        interp_len: u16,
        /// `task->comm`.
        comm: [u8; 16],
        /// Bytes of arguments in the tail.
        argv_len: u32,
        /// Bytes of environment in the tail.
        env_len: u32,
    }
}

/// In the tail of the record.
pub const PART_INLINE: u32 = 1;
/// In [`Chunk`] records before it.
pub const PART_CHUNKS: u32 = 2;

/// The walk ended at the root of the namespace (or of the process).
pub const WALK_ROOT: u32 = 1;
/// It ended at a dentry that is mounted nowhere: a memfd, a pipe.
pub const WALK_UNMOUNTED: u32 = 2;
/// It passed the root directory of the process.
pub const WALK_PASSED_ROOT: u32 = 4;
/// It ran out of steps or space.
pub const WALK_PARTIAL: u32 = 8;

/// Arguments could not be read in full.
pub const FAULT_ARGV: u32 = 1;
/// The environment could not be read in full.
pub const FAULT_ENV: u32 = 2;
/// The path or identity of the executable could not be read.
pub const FAULT_EXE: u32 = 4;
/// The working directory could not be read.
pub const FAULT_CWD: u32 = 8;
/// The name given by the caller could not be read.
pub const FAULT_FILENAME: u32 = 16;
/// Credentials could not be read.
pub const FAULT_CREDENTIALS: u32 = 32;
/// The parent could not be read.
pub const FAULT_PARENT: u32 = 64;

shared! {
    /// A piece of something long. Followed by `data_len` bytes.
    pub struct Chunk: 96 {
        /// The process; for terminal data the one that read or wrote.
        header: Header,
        /// Where the piece begins in the whole, bytes.
        offset: u64,
        /// Size of the whole, bytes.
        total: u64,
        /// How much of the whole the piece stands for; more than `data_len` where bytes could not be copied.
        span: u64,
        /// Id of the terminal; 0 in an exec.
        terminal: u64,
        /// N of `/dev/pts/N`; 0 in an exec.
        index: u32,
        /// Window height, characters; 0 if unknown.
        rows: u16,
        /// Window width, characters; 0 if unknown.
        cols: u16,
        /// [`PART_ARGV`] or [`PART_ENV`] in an exec, else 0.
        part: u16,
        /// Why bytes are missing, errno; 0 if none are.
        error: u16,
        /// Bytes that follow.
        data_len: u32,
    }
}

/// The chunk holds arguments.
pub const PART_ARGV: u16 = 1;
/// The chunk holds environment.
pub const PART_ENV: u16 = 2;

/// Most bytes of data in a [`Chunk`].
pub const CHUNK_DATA_MAX: usize = 16 * 1024;

shared! {
    /// An exec that the kernel refused. Followed by the name as the caller gave it, `name_len` bytes with the NUL.
    pub struct ExecFailed: 64 {
        /// The process that stays what it was.
        header: Header,
        /// Positive.
        errno: u32,
        /// Real user id.
        uid: u32,
        /// 0 where the name could not be read.
        name_len: u32,
        /// Zero.
        reserved: u32,
    }
}

shared! {
    /// A process was made.
    pub struct Fork: 64 {
        /// The parent.
        header: Header,
        /// Start time of the child, nanoseconds.
        child_start_ns: u64,
        /// The child.
        child_tgid: u32,
        /// Zero.
        reserved: u32,
    }
}

shared! {
    /// A process ended.
    pub struct Exit: 56 {
        /// The process.
        header: Header,
        /// As `wait(2)` encodes it.
        code: u32,
        /// Zero.
        reserved: u32,
    }
}

shared! {
    /// Something was typed while it must not be seen.
    pub struct Withheld: 72 {
        /// Who wrote it to the master end.
        header: Header,
        /// Id of the terminal.
        terminal: u64,
        /// How many bytes.
        bytes: u64,
        /// N of `/dev/pts/N`.
        index: u32,
        /// Zero.
        reserved: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_their_numbers() {
        for number in 0..=u16::MAX {
            assert!(Kind::from_number(number).is_none_or(|kind| kind as u16 == number), "{number}");
        }
        assert_eq!(Kind::from_number(10), Some(Kind::Exec));
        assert_eq!(Kind::from_number(0), None);
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut bytes = [0; Exec::SIZE];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let exec = Exec::parse(&bytes).unwrap();
        assert_eq!(exec.to_bytes(), bytes);
        assert_eq!(exec.header.len, 0x0302_0100);
        for len in 0..Exec::SIZE {
            assert_eq!(Exec::parse(&bytes[..len]), None, "{len}");
        }
    }
}
