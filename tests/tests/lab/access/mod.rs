//! The product as a platform engineer installs it, on a machine with real systemd, sshd, PAM and sudo: every way in, every lock, and
//! the end of a session. The tests share one installation, since its agent
//! takes long to start under emulation: the first makes it with dpkg, each leaves it running and locked, and the last, `uninstall`, takes it
//! away.

mod cases;
mod doors;
mod host;
mod install;
mod states;
mod uninstall;
