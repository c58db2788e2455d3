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
    /// Output of terminals, and of sessions without one.
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
    /// [`Chunk`] of what a session without a terminal wrote.
    StdioOutput = 50,
    /// [`Chunk`] of what it was given to read.
    StdioInput = 51,
    /// [`Action`]: a file was opened for writing. Values: flags as the caller gave them.
    FileOpened = 60,
    /// [`Action`]: a folder or node was made. Values: mode (with its type, for a node), device.
    FileMade = 61,
    /// [`Action`]: to the second name. Values: flags.
    FileRenamed = 62,
    /// [`Action`]: a name was removed.
    FileUnlinked = 63,
    /// [`Action`]: values: mode.
    FileMode = 64,
    /// [`Action`]: values: uid, gid; all ones for unchanged.
    FileOwner = 65,
    /// [`Action`]: values: size.
    FileTruncated = 66,
    /// [`Action`]: the second name is the new one.
    FileLinked = 67,
    /// [`Action`]: the second name is what the link says.
    FileSymlinked = 68,
    /// [`Action`]: an extended attribute was set or removed; the second name is the attribute's.
    FileAttribute = 69,
    /// [`Action`]: a file was mapped executable, the first time in its session. Values: protection, flags, length.
    FileMapped = 70,
    /// [`Action`]: the first name is the address (`struct sockaddr`). Values: descriptor, -, length.
    SocketConnected = 80,
    /// [`Action`]: likewise.
    SocketBound = 81,
    /// [`Action`]: extra: uid and gid, euid and egid, suid and sgid (low and high half), effective capabilities.
    CredentialsChanged = 90,
    /// [`Action`]: values: `CLONE_` flags, -, child. Extra: pid and mount, user and net namespace.
    NamespacesChanged = 91,
    /// [`Action`]: the root directory, by the first name.
    RootChanged = 92,
    /// [`Action`]: ptrace. Values: request, pid, address.
    Traced = 100,
    /// [`Action`]: another's memory was written. Values: bytes, pid.
    MemoryWritten = 101,
    /// [`Action`]: a descriptor was taken from another process. Values: its number there.
    DescriptorTaken = 102,
    /// [`Action`]: a signal was sent out of the session. Values: signal. Extra: the target's tgid and start time.
    Signalled = 103,
    /// [`Action`]: the second name on the first. Values: flags.
    Mounted = 110,
    /// [`Action`]: values: flags.
    Unmounted = 111,
    /// [`Action`]: a mount, or one made in pieces, was attached: the second name to the first. Values: flags.
    MountMoved = 112,
    /// [`Action`]: attributes of a mount.
    MountChanged = 113,
    /// [`Action`]: the second name has its parameters. Values: size, flags.
    ModuleLoaded = 120,
    /// [`Action`]: values: flags.
    ModuleRemoved = 121,
    /// [`Action`]: another kernel was made ready; the second name is its command line. Values: flags.
    Kexec = 122,
    /// [`Action`]: values: command, -, result.
    Bpf = 123,
    /// [`Action`]: values: pid, CPU, result.
    PerfOpened = 124,
    /// [`Action`]: values: entries, -, result.
    IoUring = 125,
    /// [`Action`]: page faults can be handled by the program. Values: flags, -, result.
    UserFault = 126,
    /// [`Action`]: memory without a file, or existing memory, was made executable, the first time in its process. Values: protection, flags, length.
    MemoryExecutable = 130,
    /// [`Action`]: the audit login uid was written. Values: what it is now.
    LoginUidSet = 140,
    /// [`Action`]: ioctl that types for the user or changes the console. Values: request, argument.
    TerminalInjected = 141,
    /// [`Action`]: values: clock, what was adjusted.
    ClockSet = 142,
    /// [`Action`]: host or domain name.
    HostNamed = 143,
    /// [`Action`]: values: command.
    Reboot = 144,
    /// [`Action`]: swap was switched on or off.
    Swap = 145,
    /// [`Action`]: process accounting.
    Accounting = 146,
    /// [`Action`]: access to I/O ports.
    PortAccess = 147,
    /// [`Action`]: the screen of a virtual console was written to by its device; the name is the beginning of what was written. Values: minor
    /// number, bytes.
    ScreenPainted = 148,
    /// [`Refusal`].
    Refused = 160,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 52] = [
        Self::Exec,
        Self::ExecPart,
        Self::ExecFailed,
        Self::Fork,
        Self::Exit,
        Self::TerminalOutput,
        Self::TerminalInput,
        Self::TerminalWithheld,
        Self::StdioOutput,
        Self::StdioInput,
        Self::FileOpened,
        Self::FileMade,
        Self::FileRenamed,
        Self::FileUnlinked,
        Self::FileMode,
        Self::FileOwner,
        Self::FileTruncated,
        Self::FileLinked,
        Self::FileSymlinked,
        Self::FileAttribute,
        Self::FileMapped,
        Self::SocketConnected,
        Self::SocketBound,
        Self::CredentialsChanged,
        Self::NamespacesChanged,
        Self::RootChanged,
        Self::Traced,
        Self::MemoryWritten,
        Self::DescriptorTaken,
        Self::Signalled,
        Self::Mounted,
        Self::Unmounted,
        Self::MountMoved,
        Self::MountChanged,
        Self::ModuleLoaded,
        Self::ModuleRemoved,
        Self::Kexec,
        Self::Bpf,
        Self::PerfOpened,
        Self::IoUring,
        Self::UserFault,
        Self::MemoryExecutable,
        Self::LoginUidSet,
        Self::TerminalInjected,
        Self::ClockSet,
        Self::HostNamed,
        Self::Reboot,
        Self::Swap,
        Self::Accounting,
        Self::PortAccess,
        Self::ScreenPainted,
        Self::Refused,
    ];

    /// The kind with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
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
/// It was, since it had a child when the table of tagged processes was almost full. The child is tagged.
pub const FLAG_CROWDED: u16 = 4;

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
/// Only the beginning of the arguments is there: all that is kept of a program outside the session.
pub const FAULT_ARGV_CUT: u32 = 512;
/// The same for the environment.
pub const FAULT_ENV_CUT: u32 = 1024;

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
        /// Id of the terminal; 0 in an exec; in stdio the start time of the process whose stdio it is.
        terminal: u64,
        /// N of `/dev/pts/N`; 0 in an exec; in stdio the process whose stdio it is.
        index: u32,
        /// Window height, characters; 0 if unknown.
        rows: u16,
        /// Window width, characters; 0 if unknown.
        cols: u16,
        /// [`PART_ARGV`] or [`PART_ENV`] in an exec, the stream (0, 1, 2) of stdio, else 0.
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

shared! {
    /// Something that a task in scope did, or tried, by a system call. Followed by `name`, `base`, `name2`, `base2`. The kind says
    /// what the values are.
    pub struct Action: 152 {
        /// The task.
        header: Header,
        /// What the call returned; a negative errno where it was refused.
        result: u64,
        /// By kind.
        values: [u64; 3],
        /// By kind.
        extra: [u64; 4],
        /// Inode number of the file, 0 where only its name is known.
        inode: u64,
        /// Device of the file, kernel encoding.
        dev: u32,
        /// Mode of the file.
        mode: u32,
        /// `file.f_flags`.
        file_flags: u32,
        /// Effective user id of the task.
        euid: u32,
        /// How `base` ended: `WALK_` bits; and `base2`, shifted left by 16.
        walks: u32,
        /// Bits: the `ACTION_` values.
        how: u32,
        /// Length of the name, as the caller gave it: it may have changed since the kernel took it.
        name_len: u16,
        /// Length of the path of the file, or of the folder that `name` is relative to: components, deepest first.
        base_len: u16,
        /// Length of the second name.
        name2_len: u16,
        /// Length of the path of the folder that the second name is relative to.
        base2_len: u16,
    }
}

/// A name could not be read.
pub const ACTION_NAME_UNREAD: u32 = 1;
/// A path could not be walked.
pub const ACTION_PATH_UNREAD: u32 = 2;
/// The call came by the 32-bit entry.
pub const ACTION_COMPAT: u32 = 4;
/// The address in `extra` is the kernel's own: address (16 bytes); port in network order, family (u16 each); the own port.
pub const ACTION_ADDRESS: u32 = 8;
/// The file is that of a descriptor, not of a name.
pub const ACTION_FILE: u32 = 16;
/// `extra` is who listens at the other end of a Unix socket: tgid, start time.
pub const ACTION_PEER: u32 = 32;

shared! {
    /// Something was refused, or would have been and was killed: see [`crate::Rule`].
    pub struct Refusal: 176 {
        /// Who tried.
        header: Header,
        /// [`crate::Rule`].
        rule: u32,
        /// Effective user id.
        euid: u32,
        /// By rule: a signal, a command of `bpf`, a `REASON_` value.
        value: u64,
        /// Attempts of the same kind by the same process that were not told since the last one that was.
        untold: u64,
        /// Inode number of what it was about, 0 if none.
        inode: u64,
        /// Its device.
        dev: u32,
        /// Process that it was about, 0 if none.
        target: u32,
        /// `task->comm` of who tried.
        comm: [u8; 16],
        /// Name of the folder of what it was about, as far as it fits.
        parent: [u8; 32],
        /// Its name, as far as it fits.
        name: [u8; 32],
        /// Bits: the `REFUSAL_` values.
        how: u32,
        /// Zero.
        reserved: u32,
    }
}

/// The process was not tagged.
pub const REFUSAL_UNTAGGED: u32 = 1;
/// It was killed instead of refused.
pub const REFUSAL_KILLED: u32 = 2;

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
