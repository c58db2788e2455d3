//! The compiled kernel programs, embedded.

use breakglass_abi::VERSION;
use sha2::{Digest, Sha256};

/// Built by `cargo xtask ebpf` from `agent-ebpf/`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../agent-ebpf/prebuilt/breakglass.bpf.o");

/// SHA-256 of the object, lower-case hex.
pub fn sha256() -> String {
    hex::encode(Sha256::digest(OBJECT))
}

/// Name of the pin folder: version of the layout and hash of the object, so that maps and programs of different builds never
/// meet.
pub fn pin_name() -> String {
    format!("v{VERSION}-{:.16}", sha256())
}

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name in the object, and of its pin.
    pub name: &'static str,
    /// What it hangs on.
    pub hook: Hook,
    /// When it is attached.
    pub attached: Attached,
}

/// What a program hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A raw tracepoint with types.
    Tracepoint(&'static str),
    /// The entry of a kernel function.
    Entry(&'static str),
    /// The return of a kernel function.
    Return(&'static str),
}

/// When a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// As long as the agent is installed.
    Always,
    /// While a session is open.
    InSession,
    /// While a session is open, where terminals are recorded by system calls.
    InSessionBasic,
    /// While a session is open, where terminals are recorded at function exits.
    InSessionTrace,
}

/// The program whose log is read; all write to one.
pub const LOGGING: Program = PROGRAMS[1];

/// All programs, in the order in which they are attached.
pub const PROGRAMS: [Program; 8] = [
    Program { name: "process_exit", hook: Hook::Tracepoint("sched_process_exit"), attached: Attached::Always },
    Program { name: "process_fork", hook: Hook::Tracepoint("sched_process_fork"), attached: Attached::Always },
    Program { name: "process_exec", hook: Hook::Tracepoint("sched_process_exec"), attached: Attached::Always },
    Program { name: "syscall_enter", hook: Hook::Tracepoint("sys_enter"), attached: Attached::InSessionBasic },
    Program { name: "syscall_exit", hook: Hook::Tracepoint("sys_exit"), attached: Attached::InSession },
    Program { name: "signal_sent", hook: Hook::Tracepoint("signal_generate"), attached: Attached::InSession },
    Program { name: "pty_write_enter", hook: Hook::Entry("pty_write"), attached: Attached::InSessionTrace },
    Program { name: "pty_write_exit", hook: Hook::Return("pty_write"), attached: Attached::InSessionTrace },
];

impl Program {
    /// Whether it belongs to a tier at all.
    pub fn in_tier(&self, terminals_by_syscall: bool) -> bool {
        match self.attached {
            Attached::Always | Attached::InSession => true,
            Attached::InSessionBasic => terminals_by_syscall,
            Attached::InSessionTrace => !terminals_by_syscall,
        }
    }

    /// What it hangs on, for people.
    pub fn hook_text(&self) -> String {
        match self.hook {
            Hook::Tracepoint(name) => format!("tp_btf/{name}"),
            Hook::Entry(name) => format!("fentry/{name}"),
            Hook::Return(name) => format!("fexit/{name}"),
        }
    }
}
