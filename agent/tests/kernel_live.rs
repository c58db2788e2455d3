//! The kernel programs on the running kernel: what is run and written is what is recorded.
//!
//! Needs root, BTF and a bpffs; says so and passes where one is missing. Every test has a pin folder and uids of its own, so
//! that tests, and other users of the machine, do not meet.

mod live;
