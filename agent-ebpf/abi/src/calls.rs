//! The system calls that the programs look at: their numbers, and what of their arguments goes into a record.
//!
//! The programs index [`TABLE`] with the number of every call of every task on the host while a session is open, so the test that
//! lets almost all of them go is one load. What follows for a task in scope is data too ([`SHAPES`]), not a branch for each call:
//! the verifier's work does not grow with the list.

use crate::record::Kind;

/// Greatest number of a call that is looked at, plus one; a power of two.
pub const NUMBERS: usize = 1024;
/// Most rows of the list; a power of two.
pub const ROWS_MAX: usize = 128;

/// Calls with programs of their own, by their code; those from [`FIRST_ACTION`] on become [`crate::Action`] records.
pub const READ: u16 = 1;
/// Into several buffers.
pub const READ_VECTOR: u16 = 2;
/// To a descriptor.
pub const WRITE: u16 = 3;
/// From several buffers.
pub const WRITE_VECTOR: u16 = 4;
/// `execve`.
pub const EXEC: u16 = 5;
/// `execveat`.
pub const EXEC_AT: u16 = 6;
/// A new pipe.
pub const PIPE: u16 = 7;
/// A descriptor put in another's place.
pub const DUP: u16 = 8;
/// Bytes moved between two descriptors.
pub const SPLICE: u16 = 9;
/// Code of the first call that becomes an [`crate::Action`].
pub const FIRST_ACTION: u16 = 10;

/// What has to be looked at before a call becomes a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Special {
    /// Nothing.
    None = 0,
    /// Only if the file can be written to, was made or was emptied, and is not a terminal or `/dev/null`. The first value is the flags.
    Open = 1,
    /// Only with flags that make namespaces, in the first argument.
    CloneFlags = 2,
    /// The same, in the structure that the first argument points to.
    CloneStruct = 3,
    /// Only executable memory; once for each file in a session, or each process.
    Map = 4,
    /// The same for memory that is there already.
    Protect = 5,
    /// Only what types for the user or changes the console.
    Ioctl = 6,
    /// Only what attaches or writes.
    Trace = 7,
    /// Only what changes the clock.
    Adjust = 8,
    /// An address of a socket is to be read.
    Socket = 9,
    /// The same, behind the old multiplexer of 32-bit programs.
    SocketCall = 10,
    /// What the task is now allowed is to be read.
    Credentials = 11,
    /// Where the task now is is to be read.
    Namespaces = 12,
    /// As [`Special::Open`], with the flags in the structure that the first value points to.
    OpenHow = 13,
    /// As [`Special::Open`], with flags that go without saying.
    Creat = 14,
}

/// How a call becomes a record, packed: the kind in the low 16 bits, then four bits each for the place of arguments (counted from
/// 1, 0 for none), then flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(pub u64);

/// Place that stands for the result rather than an argument.
pub const RESULT: u8 = 7;

impl Shape {
    /// Bit position of the name's argument. Beside a file it is for where the file cannot be found any more.
    pub const NAME: u32 = 16;
    /// Of the descriptor of the folder that the name is relative to.
    pub const BASE: u32 = 20;
    /// Of the second name.
    pub const NAME2: u32 = 24;
    /// Of the descriptor of the second name's folder.
    pub const BASE2: u32 = 28;
    /// Of a descriptor of the file itself.
    pub const FILE: u32 = 32;
    /// Of the three values; four bits each.
    pub const VALUES: u32 = 36;
    /// Of the [`Special`], eight bits.
    pub const SPECIAL: u32 = 48;
    /// Bit: record what was refused as well.
    pub const REFUSED: u32 = 56;
    /// Bit: the names are words, not paths: no folder belongs to them.
    pub const WORDS: u32 = 57;
    /// Bit: the second name is a path.
    pub const PATH2: u32 = 58;

    const fn of(kind: Kind) -> Self {
        Self(kind as u64)
    }

    const fn put(self, at: u32, place: u8) -> Self {
        Self(self.0 | (place as u64) << at)
    }

    const fn name(self, place: u8) -> Self {
        self.put(Self::NAME, place)
    }

    const fn at(self, base: u8, name: u8) -> Self {
        self.put(Self::BASE, base).put(Self::NAME, name)
    }

    const fn name2(self, place: u8) -> Self {
        self.put(Self::NAME2, place)
    }

    const fn to(self, place: u8) -> Self {
        self.put(Self::NAME2, place).put(Self::PATH2, 1)
    }

    const fn at2(self, base: u8, name: u8) -> Self {
        self.put(Self::BASE2, base).to(name)
    }

    const fn file(self, place: u8) -> Self {
        self.put(Self::FILE, place)
    }

    const fn values(self, first: u8, second: u8, third: u8) -> Self {
        self.put(Self::VALUES, first).put(Self::VALUES + 4, second).put(Self::VALUES + 8, third)
    }

    const fn special(self, special: Special) -> Self {
        self.put(Self::SPECIAL, special as u8)
    }

    const fn refused(self) -> Self {
        self.put(Self::REFUSED, 1)
    }

    const fn words(self) -> Self {
        self.put(Self::WORDS, 1)
    }
}

/// One line of the list.
struct Row {
    /// arch/x86/entry/syscalls/syscall_64.tbl; the numbers from 512 on are x32's.
    native: &'static [u16],
    /// arch/x86/entry/syscalls/syscall_32.tbl.
    compat: &'static [u16],
    shape: Shape,
}

const fn row(native: &'static [u16], compat: &'static [u16], shape: Shape) -> Row {
    Row { native, compat, shape }
}

const NO_SHAPE: Shape = Shape(0);

/// Index plus one is the code.
const ROWS: &[Row] = &[
    // read; readv, preadv, preadv2; write, pwrite64; writev, pwritev, pwritev2
    row(&[0], &[3], NO_SHAPE),
    row(&[19, 295, 327, 515, 534, 546], &[145, 333, 378], NO_SHAPE),
    row(&[1, 18], &[4, 181], NO_SHAPE),
    row(&[20, 296, 328, 516, 535, 547], &[146, 334, 379], NO_SHAPE),
    // execve; execveat
    row(&[59, 520], &[11], NO_SHAPE),
    row(&[322, 545], &[358], NO_SHAPE),
    // pipe, pipe2; dup2, dup3
    row(&[22, 293], &[42, 331], NO_SHAPE),
    row(&[33, 292], &[63, 330], NO_SHAPE),
    // splice
    row(&[275], &[313], NO_SHAPE),
    // open; openat; openat2; creat; open_by_handle_at
    row(&[2], &[5], Shape::of(Kind::FileOpened).file(RESULT).name(1).values(2, 0, 0).special(Special::Open)),
    row(&[257], &[295], Shape::of(Kind::FileOpened).file(RESULT).at(1, 2).values(3, 0, 0).special(Special::Open)),
    row(&[437], &[437], Shape::of(Kind::FileOpened).file(RESULT).at(1, 2).values(3, 0, 0).special(Special::OpenHow)),
    row(&[85], &[8], Shape::of(Kind::FileOpened).file(RESULT).name(1).special(Special::Creat)),
    row(&[304], &[342], Shape::of(Kind::FileOpened).file(RESULT).values(3, 0, 0).special(Special::Open)),
    // mkdir; mkdirat; mknod; mknodat
    row(&[83], &[39], Shape::of(Kind::FileMade).name(1).values(2, 0, 0)),
    row(&[258], &[296], Shape::of(Kind::FileMade).at(1, 2).values(3, 0, 0)),
    row(&[133], &[14], Shape::of(Kind::FileMade).name(1).values(2, 3, 0)),
    row(&[259], &[297], Shape::of(Kind::FileMade).at(1, 2).values(3, 4, 0)),
    // rename; renameat, renameat2
    row(&[82], &[38], Shape::of(Kind::FileRenamed).name(1).to(2)),
    row(&[264], &[302], Shape::of(Kind::FileRenamed).at(1, 2).at2(3, 4)),
    row(&[316], &[353], Shape::of(Kind::FileRenamed).at(1, 2).at2(3, 4).values(5, 0, 0)),
    // unlink, rmdir; unlinkat
    row(&[87, 84], &[10, 40], Shape::of(Kind::FileUnlinked).name(1)),
    row(&[263], &[301], Shape::of(Kind::FileUnlinked).at(1, 2)),
    // chmod; fchmod; fchmodat, fchmodat2
    row(&[90], &[15], Shape::of(Kind::FileMode).name(1).values(2, 0, 0)),
    row(&[91], &[94], Shape::of(Kind::FileMode).file(1).values(2, 0, 0)),
    row(&[268, 452], &[306, 452], Shape::of(Kind::FileMode).at(1, 2).values(3, 0, 0)),
    // chown, lchown; fchown; fchownat
    row(&[92, 94], &[182, 16, 212, 198], Shape::of(Kind::FileOwner).name(1).values(2, 3, 0)),
    row(&[93], &[95, 207], Shape::of(Kind::FileOwner).file(1).values(2, 3, 0)),
    row(&[260], &[298], Shape::of(Kind::FileOwner).at(1, 2).values(3, 4, 0)),
    // truncate; ftruncate
    row(&[76], &[92, 193], Shape::of(Kind::FileTruncated).name(1).values(2, 0, 0)),
    row(&[77], &[93, 194], Shape::of(Kind::FileTruncated).file(1).values(2, 0, 0)),
    // link; linkat; symlink; symlinkat
    row(&[86], &[9], Shape::of(Kind::FileLinked).name(1).to(2)),
    row(&[265], &[303], Shape::of(Kind::FileLinked).at(1, 2).at2(3, 4)),
    row(&[88], &[83], Shape::of(Kind::FileSymlinked).name(2).name2(1)),
    row(&[266], &[304], Shape::of(Kind::FileSymlinked).at(2, 3).name2(1)),
    // setxattr, lsetxattr, removexattr, lremovexattr; fsetxattr, fremovexattr; setxattrat, removexattrat
    row(&[188, 189, 197, 198], &[226, 227, 235, 236], Shape::of(Kind::FileAttribute).name(1).name2(2)),
    row(&[190, 199], &[228, 237], Shape::of(Kind::FileAttribute).file(1).name2(2)),
    row(&[463, 466], &[463, 466], Shape::of(Kind::FileAttribute).at(1, 2).name2(4)),
    // connect; bind; socketcall
    row(&[42], &[362], Shape::of(Kind::SocketConnected).values(1, 2, 3).special(Special::Socket).refused()),
    row(&[49], &[361], Shape::of(Kind::SocketBound).values(1, 2, 3).special(Special::Socket)),
    row(&[], &[102], Shape::of(Kind::SocketConnected).values(1, 2, 3).special(Special::SocketCall).refused()),
    // setuid, setgid, setreuid, setregid, setresuid, setresgid, setfsuid, setfsgid, capset
    row(
        &[105, 106, 113, 114, 117, 119, 122, 123, 126],
        &[23, 46, 70, 71, 164, 170, 138, 139, 213, 214, 203, 204, 208, 210, 215, 216, 185],
        Shape::of(Kind::CredentialsChanged).special(Special::Credentials),
    ),
    // unshare; setns; clone; clone3
    row(&[272], &[310], Shape::of(Kind::NamespacesChanged).values(1, 0, 0).special(Special::Namespaces)),
    row(&[308], &[346], Shape::of(Kind::NamespacesChanged).values(2, 0, 0).special(Special::Namespaces)),
    row(&[56], &[120], Shape::of(Kind::NamespacesChanged).values(1, 0, RESULT).special(Special::CloneFlags)),
    row(&[435], &[435], Shape::of(Kind::NamespacesChanged).values(1, 0, RESULT).special(Special::CloneStruct)),
    // chroot; pivot_root
    row(&[161], &[61], Shape::of(Kind::RootChanged).name(1)),
    row(&[155], &[217], Shape::of(Kind::RootChanged).name(1).to(2)),
    // ptrace; process_vm_writev; pidfd_getfd
    row(&[101, 521], &[26], Shape::of(Kind::Traced).values(1, 2, 3).special(Special::Trace).refused()),
    row(&[311, 540], &[348], Shape::of(Kind::MemoryWritten).values(RESULT, 1, 0).refused()),
    row(&[438], &[438], Shape::of(Kind::DescriptorTaken).file(1).values(2, 0, 0).refused()),
    // mount; umount, umount2; move_mount; open_tree; mount_setattr
    row(&[165], &[21], Shape::of(Kind::Mounted).name2(1).name(2).values(4, 0, 0).refused()),
    row(&[166], &[52, 22], Shape::of(Kind::Unmounted).name(1).values(2, 0, 0).refused()),
    row(&[429], &[429], Shape::of(Kind::MountMoved).at2(1, 2).at(3, 4).values(5, 0, 0).refused()),
    row(&[442], &[442], Shape::of(Kind::MountChanged).at(1, 2).values(3, 0, 0).refused()),
    // init_module; finit_module; delete_module
    row(&[175], &[128], Shape::of(Kind::ModuleLoaded).name2(3).values(2, 0, 0).words().refused()),
    row(&[313], &[350], Shape::of(Kind::ModuleLoaded).file(1).name2(2).values(0, 3, 0).words().refused()),
    row(&[176], &[129], Shape::of(Kind::ModuleRemoved).name(1).values(2, 0, 0).words().refused()),
    // kexec_load; kexec_file_load
    row(&[246, 528], &[283], Shape::of(Kind::Kexec).values(4, 0, 0).refused()),
    row(&[320], &[], Shape::of(Kind::Kexec).file(1).name2(4).values(5, 0, 0).words().refused()),
    // bpf; perf_event_open; io_uring_setup; userfaultfd
    row(&[321], &[357], Shape::of(Kind::Bpf).values(1, 0, RESULT).refused()),
    row(&[298], &[336], Shape::of(Kind::PerfOpened).values(2, 3, RESULT).refused()),
    row(&[425], &[425], Shape::of(Kind::IoUring).values(1, 0, RESULT).refused()),
    row(&[323], &[374], Shape::of(Kind::UserFault).values(1, 0, RESULT).refused()),
    // mmap, mmap2; mprotect, pkey_mprotect
    row(&[9], &[192], Shape::of(Kind::FileMapped).file(5).values(3, 4, 2).special(Special::Map)),
    row(&[10, 329], &[125, 380], Shape::of(Kind::MemoryExecutable).values(3, 0, 2).special(Special::Protect)),
    // ioctl
    row(&[16, 514], &[54], Shape::of(Kind::TerminalInjected).file(1).values(2, 3, 0).special(Special::Ioctl).refused()),
    // clock_settime; settimeofday, stime; adjtimex; clock_adjtime
    row(&[227], &[264, 404], Shape::of(Kind::ClockSet).values(1, 0, 0).refused()),
    row(&[164], &[79, 25], Shape::of(Kind::ClockSet).refused()),
    row(&[159], &[124], Shape::of(Kind::ClockSet).values(0, 1, 0).special(Special::Adjust).refused()),
    row(&[305], &[343, 405], Shape::of(Kind::ClockSet).values(1, 2, 0).special(Special::Adjust).refused()),
    // sethostname, setdomainname; reboot; swapon, swapoff; acct; iopl, ioperm
    row(&[170, 171], &[74, 121], Shape::of(Kind::HostNamed).name(1).words().refused()),
    row(&[169], &[88], Shape::of(Kind::Reboot).values(3, 0, 0).refused()),
    row(&[167, 168], &[87, 115], Shape::of(Kind::Swap).name(1).refused()),
    row(&[163], &[51], Shape::of(Kind::Accounting).name(1).refused()),
    row(&[172, 173], &[110, 101], Shape::of(Kind::PortAccess).values(1, 2, 3).refused()),
];

const _: () = assert!(ROWS.len() < ROWS_MAX, "codes fit into the table");

/// By number: the code of the call in the 64-bit table in the low byte, in the 32-bit table in the high byte, 0 for none.
pub const TABLE: [u16; NUMBERS] = {
    let mut table = [0; NUMBERS];
    let mut at = 0;
    while at < ROWS.len() {
        let code = at as u16 + 1;
        let mut n = 0;
        while n < ROWS[at].native.len() {
            table[ROWS[at].native[n] as usize] |= code;
            n += 1;
        }
        let mut n = 0;
        while n < ROWS[at].compat.len() {
            table[ROWS[at].compat[n] as usize] |= code << 8;
            n += 1;
        }
        at += 1;
    }
    table
};

/// By code: how the call becomes a record; see [`Shape`].
pub const SHAPES: [u64; ROWS_MAX] = {
    let mut shapes = [0; ROWS_MAX];
    let mut at = 0;
    while at < ROWS.len() {
        shapes[at + 1] = ROWS[at].shape.0;
        at += 1;
    }
    shapes
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_in_two_rows() {
        let numbers: usize = ROWS.iter().map(|row| row.native.len() + row.compat.len()).sum();
        let codes = |entry: &u16| usize::from(entry & 0xff != 0) + usize::from(entry >> 8 != 0);
        assert_eq!(TABLE.iter().map(codes).sum::<usize>(), numbers);
    }

    #[test]
    fn calls_with_programs_of_their_own_have_their_codes() {
        let known = [
            (READ, 0),
            (READ_VECTOR, 19),
            (WRITE, 1),
            (WRITE_VECTOR, 20),
            (EXEC, 59),
            (EXEC_AT, 322),
            (PIPE, 22),
            (DUP, 33),
            (SPLICE, 275),
        ];
        for (code, number) in known {
            assert_eq!(TABLE[number] & 0xff, code);
        }
        assert_eq!(TABLE[2] & 0xff, FIRST_ACTION);
        // getppid
        assert_eq!(TABLE[110] & 0xff, 0);
        // ptrace, and x32's
        assert_eq!(TABLE[101] & 0xff, TABLE[521] & 0xff);
    }

    #[test]
    fn every_other_row_has_a_kind_and_places_that_exist() {
        for row in &ROWS[usize::from(FIRST_ACTION) - 1..] {
            let shape = row.shape.0;
            assert!(Kind::from_number(shape as u16).is_some());
            for at in (Shape::NAME..Shape::SPECIAL).step_by(4) {
                assert!(shape >> at & 0xf <= u64::from(RESULT), "{shape:x}");
            }
        }
    }
}
