//! Everything that reads bytes from outside, as functions that take any bytes.
//!
//! A target panics where a promise is broken: the reader itself panics, two spellings of one thing are taken, or something is taken
//! that must not be. Two drivers feed it:
//!
//! - `cargo xtask soak fuzz`: libFuzzer, guided by coverage, for minutes or nights;
//! - `tests/fuzz.rs`: the corpus and some thousand mutations of it, the same in every run, within `cargo xtask test`.
//!
//! `corpus/TARGET/` holds inputs that reach different code, and every input that was ever a finding. A target is one line in [`TARGETS`].

#![forbid(unsafe_code)]

mod evidence;
mod host;
pub mod mutate;
mod proofs;
mod review;
mod wire;

/// A function that takes any bytes and panics where a promise is broken.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name, also that of its folder in `corpus/`.
    pub name: &'static str,
    /// What it feeds.
    pub about: &'static str,
    /// Longest input that makes sense, bytes.
    pub max_len: usize,
    /// Feeds it.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "sshsig", about: "armoured SSH signatures", max_len: 4096, run: proofs::sshsig },
    Target { name: "allowed-signers", about: "allowed_signers files", max_len: 4096, run: proofs::allowed_signers },
    Target { name: "revoked", about: "lists of revoked keys, KRLs too", max_len: 4096, run: proofs::revoked },
    Target { name: "proof", about: "a text with a signature, and who may sign", max_len: 8192, run: proofs::proof },
    Target { name: "grant-text", about: "texts that operators sign", max_len: 4608, run: proofs::grant_text },
    Target { name: "code", about: "one-time codes as they are typed", max_len: 160, run: proofs::code },
    Target { name: "control", about: "what comes in at the control port", max_len: 8192, run: wire::control },
    Target { name: "btf", about: "the kernel's type information", max_len: 4096, run: host::btf },
    Target { name: "frame", about: "frames of events", max_len: 8192, run: wire::frame },
    Target { name: "agent-message", about: "what agents send to the collector", max_len: 8192, run: wire::agent },
    Target {
        name: "transcript",
        about: "what terminals showed and what was typed",
        max_len: 2048,
        run: wire::transcript,
    },
    Target { name: "statement", about: "checkpoints and links of keys", max_len: 1024, run: evidence::statement },
    Target { name: "evidence", about: "evidence files", max_len: 4096, run: evidence::file },
    Target { name: "verify", about: "evidence files, by breakglass verify", max_len: 8192, run: evidence::verify },
    Target { name: "log-proof", about: "proofs of a transparency log", max_len: 512, run: evidence::log_proof },
    Target { name: "log-history", about: "leaves of a log, by an audit", max_len: 4096, run: evidence::history },
    Target { name: "review", about: "signed reviews", max_len: 4608, run: review::signed },
    Target { name: "reviewers", about: "files of reviewers", max_len: 4096, run: review::list },
    Target { name: "note", about: "checkpoints of a transparency log", max_len: 2048, run: evidence::note },
    Target {
        name: "add-checkpoint",
        about: "what a log asks of a witness",
        max_len: 4096,
        run: evidence::add_checkpoint,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
