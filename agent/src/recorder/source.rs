//! Where recorded events come from: the kernel's rings, or a fake in tests.

use std::{io, sync::Arc, time::Duration};

use breakglass_api::{checkpoint::Number, v1::Event};

/// One event and the kernel's number of the session that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The kernel's session number; 0 for none. The recorder translates it to the session's UUID.
    pub slot: u32,
    /// The event, its `session` not set yet.
    pub event: Event,
}

/// A source that keeps what was read until it is told that it is durable.
///
/// The order of calls is `wait`, `read`, then, once everything read is on disk together with `position`, `release`. After a
/// crash `resume` is called with the position of the last durable frame, and the source goes on exactly there: nothing twice,
/// nothing skipped.
pub trait EventSource: Send {
    /// Blocks until there is something to read, the waker was called, or `timeout` is over.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// Ends a `wait` from another thread.
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// Appends what there is to `out`, about `max_bytes` of it at most, and returns at a point where no event is half read.
    fn read(&mut self, out: &mut Vec<Observed>, max_bytes: usize) -> io::Result<()>;

    /// Where the next `read` will begin, for `resume`. Opaque.
    fn position(&self) -> Vec<u8>;

    /// Up to which number of each ring and CPU everything was read, or declared missing; ascending by ring and CPU.
    fn numbers(&self) -> Vec<Number> {
        Vec::new()
    }

    /// Everything read so far is durable; the source may forget it.
    fn release(&mut self);

    /// Goes on from a position of an earlier run. A position of another boot or another set of rings is ignored.
    fn resume(&mut self, position: &[u8]) -> io::Result<()>;
}
