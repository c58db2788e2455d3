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
    /// Whether kernels without its function are recorded all the same.
    pub optional: bool,
}

const fn program(name: &'static str, hook: Hook, attached: Attached) -> Program {
    Program { name, hook, attached, optional: false }
}

/// What hangs on functions of drivers that a kernel need not have.
const fn driver(name: &'static str, hook: Hook) -> Program {
    Program { name, hook, attached: Attached::InSessionTrace, optional: true }
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
pub const PROGRAMS: [Program; 16] = [
    program("process_exit", Hook::Tracepoint("sched_process_exit"), Attached::Always),
    program("process_fork", Hook::Tracepoint("sched_process_fork"), Attached::Always),
    program("process_exec", Hook::Tracepoint("sched_process_exec"), Attached::Always),
    program("syscall_enter", Hook::Tracepoint("sys_enter"), Attached::InSessionBasic),
    program("syscall_exit", Hook::Tracepoint("sys_exit"), Attached::InSession),
    program("signal_sent", Hook::Tracepoint("signal_generate"), Attached::InSession),
    program("pty_write_enter", Hook::Entry("pty_write"), Attached::InSessionTrace),
    program("pty_write_exit", Hook::Return("pty_write"), Attached::InSessionTrace),
    program("line_input_enter", Hook::Entry("n_tty_receive_buf_common"), Attached::InSessionTrace),
    program("line_input_exit", Hook::Return("n_tty_receive_buf_common"), Attached::InSessionTrace),
    driver("uart_write_exit", Hook::Return("uart_write")),
    driver("uart_put_char_exit", Hook::Return("uart_put_char")),
    driver("con_write_exit", Hook::Return("con_write")),
    driver("con_put_char_exit", Hook::Return("con_put_char")),
    driver("vcs_write_exit", Hook::Return("vcs_write")),
    driver("hvc_write_exit", Hook::Return("hvc_write")),
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
