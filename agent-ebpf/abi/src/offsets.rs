//! Where the kernel keeps what the programs read.

/// Value of a field that this kernel does not have and that the programs can do without.
pub const ABSENT: u32 = u32::MAX;

/// Declares the struct and the list of its fields together.
macro_rules! offsets {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// Byte offsets of struct members in the running kernel, set by the agent from BTF before the programs are loaded.
        ///
        /// The programs see them as constants, which is what lets the verifier accept loads through kernel pointers.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Offsets {
            $($(#[$meta])* pub $name: u32,)*
        }

        impl Offsets {
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($name)),*].len();
            /// Their names, in order.
            pub const NAMES: [&'static str; Self::COUNT] = [$(stringify!($name)),*];
            /// Nothing resolved; what the compiled object holds.
            pub const UNSET: Self = Self { $($name: 0,)* };
        }

        const _: () = assert!(core::mem::size_of::<Offsets>() == 4 * Offsets::COUNT);
    };
}

offsets! {
    // What every system call of the host asks for comes first: one line of the cache, which the program otherwise finds cold after every exec.
    /// `pt_regs.orig_ax`
    regs_orig_ax,
    /// `task_struct.thread_info.status`
    task_status,
    /// `pt_regs.dx`
    regs_dx,
    /// `pt_regs.si`
    regs_si,
    /// `pt_regs.di`
    regs_di,
    /// `task_struct.files`
    task_files,
    /// `files_struct.fdt`
    files_fdt,
    /// `fdtable.max_fds`
    fdt_max,
    /// `fdtable.fd`
    fdt_fd,
    /// `file.f_inode`
    file_inode,
    /// `inode.i_mode`
    inode_mode,
    /// `task_struct.tgid`
    task_tgid,
    /// `task_struct.pid`
    task_pid,
    /// `task_struct.group_leader`
    task_group_leader,
    /// `task_struct.start_boottime`
    task_start,
    // All others.
    /// `task_struct.real_parent`
    task_parent,
    /// `task_struct.mm`
    task_mm,
    /// `task_struct.cred`
    task_cred,
    /// `task_struct.signal`
    task_signal,
    /// `task_struct.exit_code`
    task_exit_code,
    /// `task_struct.flags`
    task_flags,
    /// `task_struct.loginuid`; may be absent
    task_loginuid,
    /// `task_struct.sessionid`; may be absent
    task_sessionid,
    /// `task_struct.nsproxy`
    task_nsproxy,
    /// `task_struct.fs`
    task_fs,
    /// `mm_struct.arg_start`
    mm_arg_start,
    /// `mm_struct.arg_end`
    mm_arg_end,
    /// `mm_struct.env_start`
    mm_env_start,
    /// `mm_struct.env_end`
    mm_env_end,
    /// `cred.uid`
    cred_uid,
    /// `cred.gid`
    cred_gid,
    /// `cred.suid`
    cred_suid,
    /// `cred.sgid`
    cred_sgid,
    /// `cred.euid`
    cred_euid,
    /// `cred.egid`
    cred_egid,
    /// `cred.cap_effective`
    cred_cap_effective,
    /// `cred.user_ns`
    cred_user_ns,
    /// `user_namespace.ns.inum`
    user_ns_inum,
    /// `nsproxy.pid_ns_for_children`
    nsproxy_pid,
    /// `nsproxy.mnt_ns`
    nsproxy_mount,
    /// `nsproxy.net_ns`
    nsproxy_net,
    /// `pid_namespace.ns.inum`
    pid_ns_inum,
    /// `mnt_namespace.ns.inum`
    mount_ns_inum,
    /// `net.ns.inum`
    net_ns_inum,
    /// `signal_struct.live`
    signal_live,
    /// `signal_struct.flags`
    signal_flags,
    /// `signal_struct.group_exit_code`
    signal_exit_code,
    /// `signal_struct.tty`
    signal_tty,
    /// `linux_binprm.file`
    bprm_file,
    /// `linux_binprm.filename`
    bprm_filename,
    /// `linux_binprm.interp`
    bprm_interp,
    /// `file.f_path`
    file_path,
    /// `file.private_data`
    file_private,
    /// `file.f_flags`
    file_flags,
    /// `file.f_mode`
    file_mode,
    /// `path.mnt`
    path_mnt,
    /// `path.dentry`
    path_dentry,
    /// `fs_struct.root`
    fs_root,
    /// `fs_struct.pwd`
    fs_pwd,
    /// `dentry.d_parent`
    dentry_parent,
    /// `dentry.d_name.name`
    dentry_name,
    /// `dentry.d_name.len`
    dentry_name_len,
    /// `vfsmount.mnt_root`
    vfsmount_root,
    /// `mount.mnt`
    mount_mnt,
    /// `mount.mnt_parent`
    mount_parent,
    /// `mount.mnt_mountpoint`
    mount_mountpoint,
    /// `inode.i_ino`
    inode_ino,
    /// `inode.i_nlink`
    inode_nlink,
    /// `inode.i_rdev`
    inode_rdev,
    /// `inode.i_sb`
    inode_sb,
    /// `super_block.s_dev`
    sb_dev,
    /// `tty_file_private.tty`
    tty_file_tty,
    /// `tty_struct.link`
    tty_link,
    /// `tty_struct.index`
    tty_index,
    /// `tty_struct.driver`
    tty_driver,
    /// `tty_struct.termios.c_lflag`
    tty_lflag,
    /// `tty_struct.termios.c_iflag`
    tty_iflag,
    /// `tty_struct.winsize.ws_row`
    tty_rows,
    /// `tty_struct.winsize.ws_col`
    tty_cols,
    /// `tty_struct.ctrl.session` (`session` before 5.16)
    tty_session,
    /// `tty_struct.ctrl.packet` (`packet` before 5.16)
    tty_packet,
    /// `tty_driver.major`
    driver_major,
    /// `tty_driver.minor_start`
    driver_minor,
    /// `pid.numbers`, the first element's `nr`
    pid_nr,
    /// `pid.tasks`
    pid_tasks,
    /// `task_struct.pid_links`
    task_pid_links,
    /// `pt_regs.bx`
    regs_bx,
    /// `pt_regs.cx`
    regs_cx,
    /// `pt_regs.r10`
    regs_r10,
    /// `pt_regs.r8`
    regs_r8,
    /// `pt_regs.r9`
    regs_r9,
    /// `pt_regs.bp`
    regs_bp,
    /// `socket.sk`
    socket_sk,
    /// `socket_alloc.vfs_inode`
    socket_inode,
    /// `sock.sk_socket`
    sock_socket,
    /// `sock.__sk_common.skc_family`
    sock_family,
    /// `sock.__sk_common.skc_dport`
    sock_port,
    /// `sock.__sk_common.skc_num`
    sock_num,
    /// `sock.__sk_common.skc_daddr`
    sock_address,
    /// `sock.__sk_common.skc_v6_daddr`; absent without IPv6
    sock_address6,
    /// `sock.sk_peer_pid`
    sock_peer_pid,
    /// `unix_sock.peer`
    unix_peer,
    /// `super_block.s_magic`
    sb_magic,
    /// `kernel_siginfo.si_code`
    siginfo_code,
    /// `task_struct.stack`
    task_stack,
    /// `mm_struct.exe_file`
    mm_exe_file,
    /// `dentry.d_inode`
    dentry_inode,
    /// `dentry.d_sb`
    dentry_sb,
    /// `mount.mnt_ns`
    mount_ns,
    /// `mount.mnt_group_id`
    mount_group,
    /// `mount.mnt_id`
    mount_id,
    /// `super_block.s_root`
    sb_root,
    /// `fs_parameter.key`
    parameter_key,
    /// `fs_parameter.string`
    parameter_string,
    /// `proc_inode.vfs_inode`
    proc_inode,
    /// `proc_inode.pid`
    proc_pid,
    /// `bpf_map.id`
    bpf_map_id,
    /// `bpf_prog.aux`
    bpf_prog_aux,
    /// `bpf_prog_aux.id`
    bpf_aux_id,
}
