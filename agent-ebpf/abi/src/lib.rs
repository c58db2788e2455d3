//! What the kernel programs and the agent say to each other: records, settings, field offsets.
//!
//! Everything is little-endian and without implicit padding. A record on a ring is a [`Header`], the rest of its kind's
//! struct, and for some kinds a tail of bytes; [`Header::len`] covers all of it. The kernel side writes the structs in place,
//! the agent reads them byte by byte through [`Header::parse`] and its siblings, which never panic and need no alignment.
//!
//! The layout is private to one build of the agent: the compiled programs are embedded in it, and pins carry [`VERSION`].

#![no_std]
#![forbid(unsafe_code)]

pub mod calls;
mod layout;
pub mod offsets;
pub mod record;
pub mod settings;

pub use offsets::Offsets;
pub use record::{Action, Chunk, Exec, ExecFailed, Exit, Fork, Header, Kind, Refusal, Ring, Withheld};
pub use settings::{
    Agent, Attempt, AttemptKey, Counter, GuardedKey, Knob, MappedKey, ProcessKey, Pulse, Rule, Settings, StdioEnd,
    StdioKey, Tag, Terminal,
};

/// Version of everything in this crate; raised by any change of layout or meaning. Part of the name of the pin folder.
pub const VERSION: u32 = 6;
