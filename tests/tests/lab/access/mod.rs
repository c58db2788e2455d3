//! The product as a platform engineer installs it, on a machine with real systemd, sshd, PAM and sudo: every way in, every lock, and
//! the end of a session. The tests share one installation, since its agent
//! takes long to start under emulation: the first makes it with dpkg, each leaves it running and locked, and the last, `uninstall`, takes it
//! away.

mod aftermath;
mod cases;
mod doors;
mod end;
mod fido;
mod host;
mod install;
mod locks;
mod reboot;
mod rest;
mod states;
mod uninstall;
