//! The promise between one caller and the recorder's thread: an event that the caller was told is not recorded must not
//! appear, unless with a word that it was given up.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::sync::oneshot;

use super::RecordError;

/// Not being written: may be withdrawn.
const WAITING: u8 = 0;
/// Being written: only the disk knows.
const WRITING: u8 = 1;
/// The caller gave up before it was written.
const WITHDRAWN: u8 = 2;
/// The caller gave up while it was being written.
const ABANDONED: u8 = 3;
/// Answered.
const DONE: u8 = 4;

/// The thread's end.
pub struct Ticket {
    state: Arc<AtomicU8>,
    answer: oneshot::Sender<u64>,
}

/// The caller's end.
pub struct Waiter {
    state: Arc<AtomicU8>,
    answer: oneshot::Receiver<u64>,
}

/// What became of a request that its caller does not wait for any longer.
#[derive(Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// It will not be written.
    Withdrawn,
    /// It is being written.
    Uncertain,
    /// It is written; the answer is there.
    Answered,
}

impl Waiter {
    pub fn new() -> (Ticket, Self) {
        let state = Arc::new(AtomicU8::new(WAITING));
        let (sender, answer) = oneshot::channel();
        (Ticket { state: state.clone(), answer: sender }, Self { state, answer })
    }

    pub async fn answer(&mut self) -> Result<u64, RecordError> {
        (&mut self.answer).await.map_err(|_| RecordError::Closed)
    }

    pub fn give_up(&self) -> GivenUp {
        if self.change(WAITING, WITHDRAWN) {
            GivenUp::Withdrawn
        } else if self.change(WRITING, ABANDONED) {
            GivenUp::Uncertain
        } else {
            // Answered, or put back to waiting between the two looks: then this one finds it so.
            if self.change(WAITING, WITHDRAWN) { GivenUp::Withdrawn } else { GivenUp::Answered }
        }
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Ticket {
    /// Before writing. False if it must not be written any more.
    pub fn begin(&self) -> bool {
        match self.state.compare_exchange(WAITING, WRITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(state) => state == WRITING || state == ABANDONED,
        }
    }

    /// After writing failed and was undone.
    pub fn undo(&self) {
        if self.state.compare_exchange(WRITING, WAITING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.state.store(WITHDRAWN, Ordering::Release);
        }
    }

    /// After it is durable. True if the caller had given up meanwhile.
    pub fn finish(self, seq: u64) -> bool {
        let late = self.state.swap(DONE, Ordering::AcqRel) == ABANDONED;
        // Nobody listens if the caller gave up or went away.
        let _ = self.answer.send(seq);
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn withdrawn_before_writing_is_not_written() {
        let (ticket, waiter) = Waiter::new();
        assert_eq!(waiter.give_up(), GivenUp::Withdrawn);
        assert!(!ticket.begin());
    }

    #[test]
    fn given_up_while_writing_is_late_or_undone() {
        let (ticket, waiter) = Waiter::new();
        assert!(ticket.begin());
        assert_eq!(waiter.give_up(), GivenUp::Uncertain);
        assert!(ticket.begin(), "the bytes may be on the disk, so that it goes on");
        assert!(ticket.finish(7));

        let (ticket, waiter) = Waiter::new();
        assert!(ticket.begin());
        assert_eq!(waiter.give_up(), GivenUp::Uncertain);
        ticket.undo();
        assert!(!ticket.begin());
    }

    #[test]
    fn undone_is_written_again() {
        let (ticket, waiter) = Waiter::new();
        assert!(ticket.begin());
        ticket.undo();
        assert!(ticket.begin());
        assert!(!ticket.finish(3));
        assert_eq!(waiter.give_up(), GivenUp::Answered);
    }
}
