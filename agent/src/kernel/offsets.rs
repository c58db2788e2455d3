//! Which kernel fields the programs read, and who needs each: the offsets of the running kernel.

use breakglass_abi::{Offsets, offsets::ABSENT};

use super::btf::{Btf, BtfError};

/// A field that this kernel does not have.
#[derive(Debug, thiserror::Error)]
#[error("{source} (read for {used_for})")]
pub struct OffsetError {
    /// What the programs read it for.
    pub used_for: &'static str,
    /// What is missing or different.
    pub source: BtfError,
}

/// One line of the table.
struct Row {
    /// Name in [`Offsets`].
    name: &'static str,
    /// Struct and member, newest kernel first.
    places: &'static [(&'static str, &'static str)],
    /// What is loaded, bytes; 0 for a struct that is only passed through.
    size: u32,
    /// What for.
    used_for: &'static str,
    /// Whether the programs can do without.
    optional: bool,
}

const fn row(
    name: &'static str,
    places: &'static [(&'static str, &'static str)],
    size: u32,
    used_for: &'static str,
) -> Row {
    Row { name, places, size, used_for, optional: false }
}

const fn optional(
    name: &'static str,
    places: &'static [(&'static str, &'static str)],
    size: u32,
    used_for: &'static str,
) -> Row {
    Row { name, places, size, used_for, optional: true }
}

const ALL: &str = "exec, fork, exit and terminals";
const SCOPE: &str = "scope: exec, fork and terminals";
const EXEC: &str = "exec";
const PATH: &str = "exec: paths";
const EXIT: &str = "exit";
const TERMINAL: &str = "terminals";
const MASTER: &str = "terminals by system calls";
const CALL: &str = "failed execs, terminals by system calls and what tasks do";
const ACTION: &str = "what tasks do";
const CONNECT: &str = "connections";
const STDIO: &str = "stdio of sessions without a terminal";
const GUARD: &str = "the guard";

/// In the order of [`Offsets`].
const TABLE: [Row; Offsets::COUNT] = [
    row("regs_orig_ax", &[("pt_regs", "orig_ax")], 8, CALL),
    row("task_status", &[("task_struct", "thread_info.status")], 4, CALL),
    row("regs_dx", &[("pt_regs", "dx")], 8, ACTION),
    row("regs_si", &[("pt_regs", "si")], 8, CALL),
    row("regs_di", &[("pt_regs", "di")], 8, CALL),
    row("task_files", &[("task_struct", "files")], 8, MASTER),
    row("files_fdt", &[("files_struct", "fdt")], 8, MASTER),
    row("fdt_max", &[("fdtable", "max_fds")], 4, MASTER),
    row("fdt_fd", &[("fdtable", "fd")], 8, MASTER),
    row("file_inode", &[("file", "f_inode")], 8, "exec and terminals by system calls"),
    row("inode_mode", &[("inode", "i_mode")], 2, EXEC),
    row("task_tgid", &[("task_struct", "tgid")], 4, ALL),
    row("task_pid", &[("task_struct", "pid")], 4, ALL),
    row("task_group_leader", &[("task_struct", "group_leader")], 8, ALL),
    row("task_start", &[("task_struct", "start_boottime"), ("task_struct", "real_start_time")], 8, ALL),
    row("task_parent", &[("task_struct", "real_parent")], 8, EXEC),
    row("task_mm", &[("task_struct", "mm")], 8, EXEC),
    row("task_cred", &[("task_struct", "cred")], 8, SCOPE),
    row("task_signal", &[("task_struct", "signal")], 8, "exec and exit"),
    row("task_exit_code", &[("task_struct", "exit_code")], 4, EXIT),
    row("task_flags", &[("task_struct", "flags")], 4, TERMINAL),
    optional("task_loginuid", &[("task_struct", "loginuid")], 4, SCOPE),
    optional("task_sessionid", &[("task_struct", "sessionid")], 4, EXEC),
    row("task_nsproxy", &[("task_struct", "nsproxy")], 8, EXEC),
    row("task_fs", &[("task_struct", "fs")], 8, PATH),
    row("mm_arg_start", &[("mm_struct", "arg_start")], 8, EXEC),
    row("mm_arg_end", &[("mm_struct", "arg_end")], 8, EXEC),
    row("mm_env_start", &[("mm_struct", "env_start")], 8, EXEC),
    row("mm_env_end", &[("mm_struct", "env_end")], 8, EXEC),
    row("cred_uid", &[("cred", "uid")], 4, SCOPE),
    row("cred_gid", &[("cred", "gid")], 4, EXEC),
    row("cred_suid", &[("cred", "suid")], 4, EXEC),
    row("cred_sgid", &[("cred", "sgid")], 4, EXEC),
    row("cred_euid", &[("cred", "euid")], 4, SCOPE),
    row("cred_egid", &[("cred", "egid")], 4, EXEC),
    row("cred_cap_effective", &[("cred", "cap_effective")], 8, EXEC),
    row("cred_user_ns", &[("cred", "user_ns")], 8, EXEC),
    row("user_ns_inum", &[("user_namespace", "ns.inum")], 4, EXEC),
    row("nsproxy_pid", &[("nsproxy", "pid_ns_for_children")], 8, EXEC),
    row("nsproxy_mount", &[("nsproxy", "mnt_ns")], 8, EXEC),
    row("nsproxy_net", &[("nsproxy", "net_ns")], 8, EXEC),
    row("pid_ns_inum", &[("pid_namespace", "ns.inum")], 4, EXEC),
    row("mount_ns_inum", &[("mnt_namespace", "ns.inum")], 4, EXEC),
    row("net_ns_inum", &[("net", "ns.inum")], 4, EXEC),
    row("signal_live", &[("signal_struct", "live")], 4, EXIT),
    row("signal_flags", &[("signal_struct", "flags")], 4, EXIT),
    row("signal_exit_code", &[("signal_struct", "group_exit_code")], 4, EXIT),
    row("signal_tty", &[("signal_struct", "tty")], 8, TERMINAL),
    row("bprm_file", &[("linux_binprm", "file")], 8, PATH),
    row("bprm_filename", &[("linux_binprm", "filename")], 8, EXEC),
    row("bprm_interp", &[("linux_binprm", "interp")], 8, EXEC),
    row("file_path", &[("file", "f_path")], 0, PATH),
    row("file_private", &[("file", "private_data")], 8, MASTER),
    row("file_flags", &[("file", "f_flags")], 4, ACTION),
    row("file_mode", &[("file", "f_mode")], 4, ACTION),
    row("path_mnt", &[("path", "mnt")], 8, PATH),
    row("path_dentry", &[("path", "dentry")], 8, PATH),
    row("fs_root", &[("fs_struct", "root")], 0, PATH),
    row("fs_pwd", &[("fs_struct", "pwd")], 0, PATH),
    row("dentry_parent", &[("dentry", "d_parent")], 8, PATH),
    row("dentry_name", &[("dentry", "d_name.name")], 8, PATH),
    row("dentry_name_len", &[("dentry", "d_name.len")], 4, PATH),
    row("vfsmount_root", &[("vfsmount", "mnt_root")], 8, PATH),
    row("mount_mnt", &[("mount", "mnt")], 0, PATH),
    row("mount_parent", &[("mount", "mnt_parent")], 8, PATH),
    row("mount_mountpoint", &[("mount", "mnt_mountpoint")], 8, PATH),
    row("inode_ino", &[("inode", "i_ino")], 8, EXEC),
    row("inode_nlink", &[("inode", "i_nlink")], 4, EXEC),
    row("inode_rdev", &[("inode", "i_rdev")], 4, MASTER),
    row("inode_sb", &[("inode", "i_sb")], 8, EXEC),
    row("sb_dev", &[("super_block", "s_dev")], 4, EXEC),
    row("tty_file_tty", &[("tty_file_private", "tty")], 8, MASTER),
    row("tty_link", &[("tty_struct", "link")], 8, TERMINAL),
    row("tty_index", &[("tty_struct", "index")], 4, TERMINAL),
    row("tty_driver", &[("tty_struct", "driver")], 8, TERMINAL),
    row("tty_lflag", &[("tty_struct", "termios.c_lflag")], 4, TERMINAL),
    row("tty_iflag", &[("tty_struct", "termios.c_iflag")], 4, TERMINAL),
    row("tty_rows", &[("tty_struct", "winsize.ws_row")], 2, TERMINAL),
    row("tty_cols", &[("tty_struct", "winsize.ws_col")], 2, TERMINAL),
    row("tty_session", &[("tty_struct", "ctrl.session"), ("tty_struct", "session")], 8, TERMINAL),
    row("tty_packet", &[("tty_struct", "ctrl.packet"), ("tty_struct", "packet")], 1, MASTER),
    row("driver_major", &[("tty_driver", "major")], 4, TERMINAL),
    row("driver_minor", &[("tty_driver", "minor_start")], 4, TERMINAL),
    row("pid_nr", &[("pid", "numbers.nr")], 4, TERMINAL),
    row("pid_tasks", &[("pid", "tasks")], 0, TERMINAL),
    row("task_pid_links", &[("task_struct", "pid_links")], 0, TERMINAL),
    row("regs_bx", &[("pt_regs", "bx")], 8, CALL),
    row("regs_cx", &[("pt_regs", "cx")], 8, CALL),
    row("regs_r10", &[("pt_regs", "r10")], 8, ACTION),
    row("regs_r8", &[("pt_regs", "r8")], 8, ACTION),
    row("regs_r9", &[("pt_regs", "r9")], 8, ACTION),
    row("regs_bp", &[("pt_regs", "bp")], 8, ACTION),
    row("socket_sk", &[("socket", "sk")], 8, "stdio and connections"),
    row("socket_inode", &[("socket_alloc", "vfs_inode")], 0, STDIO),
    row("sock_socket", &[("sock", "sk_socket")], 8, STDIO),
    row("sock_family", &[("sock", "__sk_common.skc_family")], 2, "stdio and connections"),
    row("sock_port", &[("sock", "__sk_common.skc_dport")], 2, CONNECT),
    row("sock_num", &[("sock", "__sk_common.skc_num")], 2, CONNECT),
    row("sock_address", &[("sock", "__sk_common.skc_daddr")], 4, CONNECT),
    optional("sock_address6", &[("sock", "__sk_common.skc_v6_daddr")], 16, CONNECT),
    row("sock_peer_pid", &[("sock", "sk_peer_pid")], 8, CONNECT),
    row("unix_peer", &[("unix_sock", "peer")], 8, STDIO),
    row("sb_magic", &[("super_block", "s_magic")], 8, ACTION),
    row("siginfo_code", &[("kernel_siginfo", "si_code")], 4, "signals"),
    row("task_stack", &[("task_struct", "stack")], 8, "signals"),
    row("mm_exe_file", &[("mm_struct", "exe_file")], 8, GUARD),
    row("dentry_inode", &[("dentry", "d_inode")], 8, GUARD),
    row("dentry_sb", &[("dentry", "d_sb")], 8, GUARD),
    row("mount_ns", &[("mount", "mnt_ns")], 8, GUARD),
    row("mount_group", &[("mount", "mnt_group_id")], 4, GUARD),
    row("mount_id", &[("mount", "mnt_id")], 4, GUARD),
    row("sb_root", &[("super_block", "s_root")], 8, GUARD),
    row("parameter_key", &[("fs_parameter", "key")], 8, GUARD),
    row("parameter_string", &[("fs_parameter", "string")], 8, GUARD),
    row("proc_inode", &[("proc_inode", "vfs_inode")], 0, GUARD),
    row("proc_pid", &[("proc_inode", "pid")], 8, GUARD),
    row("bpf_map_id", &[("bpf_map", "id")], 4, GUARD),
    row("bpf_prog_aux", &[("bpf_prog", "aux")], 8, GUARD),
    row("bpf_aux_id", &[("bpf_prog_aux", "id")], 4, GUARD),
];

/// Resolves every field, in the order of [`Offsets::NAMES`], as the words of the global `OFFSETS`.
pub fn resolve(btf: &Btf) -> Result<[u32; Offsets::COUNT], OffsetError> {
    let mut words = [ABSENT; Offsets::COUNT];
    for (word, row) in words.iter_mut().zip(&TABLE) {
        *word = resolve_row(btf, row)?;
        tracing::trace!("offset {} = {word}", row.name);
    }
    Ok(words)
}

fn resolve_row(btf: &Btf, row: &Row) -> Result<u32, OffsetError> {
    let mut first_error = None;
    for (structure, member) in row.places {
        match btf.member(structure, member) {
            Ok(found) if row.size == 0 || found.size == row.size => return Ok(found.offset),
            Ok(found) => {
                let source = BtfError::Size {
                    name: (*structure).into(),
                    member: (*member).into(),
                    found: found.size,
                    expected: row.size,
                };
                return Err(OffsetError { used_for: row.used_for, source });
            }
            Err(error @ (BtfError::NoStruct { .. } | BtfError::NoMember { .. })) => {
                first_error.get_or_insert(error);
            }
            Err(source) => return Err(OffsetError { used_for: row.used_for, source }),
        }
    }
    match first_error {
        Some(source) if !row.optional => Err(OffsetError { used_for: row.used_for, source }),
        _ => Ok(ABSENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_fields_of_the_struct_in_their_order() {
        let names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names, Offsets::NAMES);
    }

    #[test]
    fn every_row_names_a_place_and_a_use() {
        for row in &TABLE {
            assert!(!row.places.is_empty() && !row.used_for.is_empty(), "{}", row.name);
        }
    }

    #[test]
    fn the_running_kernel_has_them_all() {
        let Ok(btf) = Btf::of_running_kernel() else {
            eprintln!("skipped: this kernel shows no type information");
            return;
        };
        let words = resolve(&btf).unwrap();
        let named = |name| words[Offsets::NAMES.iter().position(|known| *known == name).unwrap()];
        assert_ne!(named("task_tgid"), named("task_pid"));
        assert!(named("mm_arg_end") == named("mm_arg_start") + 8);
    }
}
