//! Which session a number of the kernel's stands for.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

/// Names kept, newest first to be found. Events of a session come at most a ring's length after its end.
const NAMES_MAX: usize = 64;

#[derive(Default)]
pub struct Names(Mutex<VecDeque<(u32, Uuid)>>);

impl Names {
    pub fn set(&self, slot: u32, session: Uuid) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|(known, _)| *known != slot);
        names.truncate(NAMES_MAX - 1);
        names.push_front((slot, session));
    }

    pub fn get(&self, slot: u32) -> Option<Uuid> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(known, _)| *known == slot).map(|(_, session)| *session)
    }
}
