//! The compiled kernel programs, embedded.

use std::sync::LazyLock;

use breakglass_abi::VERSION;
use sha2::{Digest, Sha256};

/// Built by `cargo xtask ebpf` from `agent-ebpf/`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../agent-ebpf/prebuilt/breakglass.bpf.o");

/// SHA-256 of the object, lower-case hex.
pub fn sha256() -> String {
    static HASH: LazyLock<String> = LazyLock::new(|| hex::encode(Sha256::digest(OBJECT)));
    HASH.clone()
}

/// Name of the pin folder: version of the layout and hash of the object, so that maps and programs of different builds never
/// meet.
pub fn pin_name(sha256: &str) -> String {
    format!("{}{sha256:.16}", layout_prefix())
}

/// How the names of pin folders begin whose maps have this build's layout.
pub fn layout_prefix() -> String {
    format!("v{VERSION}-")
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
    /// Whether kernels without its function or hook are recorded all the same.
    pub optional: bool,
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
    /// A security hook.
    Security(&'static str),
}

/// When a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// As long as the agent is installed.
    Always,
    /// While a session is open.
    InSession,
    /// While a session is open, where terminals are recorded at function exits.
    InSessionTrace,
    /// As long as the agent is installed, where security hooks work.
    Guard,
}

/// What a kernel was found to allow beyond tracepoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// Programs at entries and exits of functions.
    pub function_exits: bool,
    /// Programs at security hooks.
    pub security_hooks: bool,
}

/// The program whose log is read; all write to one.
pub const LOGGING: Program = PROGRAMS[1];

/// All programs, in the order in which they are attached. Recording first, then the guard; within it what protects the programs
/// themselves first.
pub const PROGRAMS: [Program; 56] = [
    program("process_exit", Hook::Tracepoint("sched_process_exit"), Attached::Always),
    program("process_fork", Hook::Tracepoint("sched_process_fork"), Attached::Always),
    program("process_judge", Hook::Tracepoint("sched_process_exec"), Attached::Always),
    program("process_exec", Hook::Tracepoint("sched_process_exec"), Attached::Always),
    program("syscall_exit", Hook::Tracepoint("sys_exit"), Attached::InSession),
    program("signal_sent", Hook::Tracepoint("signal_generate"), Attached::InSession),
    optional(program("uring_made", Hook::Tracepoint("io_uring_create"), Attached::InSession)),
    optional(program("uring_used", Hook::Tracepoint("io_uring_submit_req"), Attached::InSession)),
    optional(program("uring_used_before_6_4", Hook::Tracepoint("io_uring_submit_sqe"), Attached::InSession)),
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
    guard("guard_open", "file_open"),
    guard("guard_exec", "bprm_creds_for_exec"),
    guard("guard_bpf_map", "bpf_map"),
    guard("guard_bpf_prog", "bpf_prog"),
    guard("guard_bpf", "bpf"),
    guard("guard_unlink", "inode_unlink"),
    guard("guard_rmdir", "inode_rmdir"),
    guard("guard_rename", "inode_rename"),
    guard("guard_mount", "sb_mount"),
    guard("guard_umount", "sb_umount"),
    guard("guard_move_mount", "move_mount"),
    guard("guard_pivotroot", "sb_pivotroot"),
    guard("guard_signal", "task_kill"),
    guard("guard_ptrace", "ptrace_access_check"),
    guard("guard_setnice", "task_setnice"),
    guard("guard_setioprio", "task_setioprio"),
    guard("guard_setscheduler", "task_setscheduler"),
    guard("guard_setrlimit", "task_setrlimit"),
    guard("guard_create", "inode_create"),
    guard("guard_mkdir", "inode_mkdir"),
    guard("guard_mknod", "inode_mknod"),
    guard("guard_symlink", "inode_symlink"),
    guard("guard_link", "inode_link"),
    guard("guard_ioctl", "file_ioctl"),
    // By 32-bit programs; where there is no such hook they ask the one above.
    optional(guard("guard_ioctl_compat", "file_ioctl_compat")),
    guard("guard_sigio", "file_send_sigiotask"),
    guard("guard_lockdown", "locked_down"),
    guard("guard_boot", "capable"),
    guard("guard_load_data", "kernel_load_data"),
    guard("guard_read_file", "kernel_read_file"),
    optional(guard("guard_perf", "perf_event_open")),
    // Hooks by path need CONFIG_SECURITY_PATH.
    optional(guard("guard_chmod", "path_chmod")),
    optional(guard("guard_chown", "path_chown")),
    optional(guard("guard_truncate", "path_truncate")),
    optional(guard("guard_map", "mmap_file")),
    optional(guard("guard_option", "fs_context_parse_param")),
    // From 6.2 on.
    optional(guard("guard_file_truncate", "file_truncate")),
];

const fn program(name: &'static str, hook: Hook, attached: Attached) -> Program {
    Program { name, hook, attached, optional: false }
}

const fn guard(name: &'static str, hook: &'static str) -> Program {
    program(name, Hook::Security(hook), Attached::Guard)
}

/// What hangs on functions of drivers that a kernel need not have.
const fn driver(name: &'static str, hook: Hook) -> Program {
    optional(program(name, hook, Attached::InSessionTrace))
}

const fn optional(program: Program) -> Program {
    Program { optional: true, ..program }
}

impl Program {
    /// Whether it is used where the kernel allows this.
    pub fn is_used(&self, means: Means) -> bool {
        match self.attached {
            Attached::Always | Attached::InSession => true,
            Attached::InSessionTrace => means.function_exits,
            Attached::Guard => means.security_hooks,
        }
    }

    /// Whether it is attached while no session is open.
    pub fn is_always_attached(&self) -> bool {
        matches!(self.attached, Attached::Always | Attached::Guard)
    }

    /// What it hangs on, for people.
    pub fn hook_text(&self) -> String {
        match self.hook {
            Hook::Tracepoint(name) => format!("tp_btf/{name}"),
            Hook::Entry(name) => format!("fentry/{name}"),
            Hook::Return(name) => format!("fexit/{name}"),
            Hook::Security(name) => format!("lsm/{name}"),
        }
    }
}
