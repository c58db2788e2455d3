//! BPF programs at security hooks: what is refused. Attached as long as the agent is installed, so that opening a session costs
//! nothing; each begins with what tells nearly everything on the host apart. A hook that a kernel lacks is left out and named by
//! `breakglass-agent doctor`.
//!
//! Prototypes: include/linux/lsm_hook_defs.h. Where an argument moved between 6.1 and 6.12 (`inode_setattr`), another hook is used.

mod exec;

mod bpf;

mod task;

mod entry;

mod open;

mod mount;

mod system;
