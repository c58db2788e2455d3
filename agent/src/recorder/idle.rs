//! A source without events, for a host whose kernel records nothing.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use super::source::{EventSource, Observed};

#[derive(Default)]
pub struct IdleSource {
    woken: Arc<(Mutex<bool>, Condvar)>,
}

impl EventSource for IdleSource {
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let (woken, changed) = &*self.woken;
        let guard = woken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(guard, timeout, |woken| !*woken);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let shared = self.woken.clone();
        Arc::new(move || {
            let (woken, changed) = &*shared;
            *woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            changed.notify_all();
        })
    }

    fn read(&mut self, _: &mut Vec<Observed>, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn position(&self) -> Vec<u8> {
        Vec::new()
    }

    fn release(&mut self) {}

    fn resume(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
