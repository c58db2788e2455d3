//! The programs, in the order in which the kernel reaches their hooks. One file a subject.

mod fork;

mod judge;

mod exec;

mod exit;

mod syscall;

mod pty;

mod line;

mod action;

mod opened;

mod draft;

mod written;

mod signal;

mod uring;

mod guard;
