//! Blocking calls off the runtime's threads.

use std::{panic, sync::mpsc, thread, time::Duration};

/// Runs `act` on a thread that may block, and passes on its panic. While the runtime shuts down it never resolves: the caller is about
/// to be dropped as well.
pub async fn run<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(act).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => panic::resume_unwind(panic),
        Err(Err(_cancelled)) => std::future::pending().await,
    }
}

/// What `act` comes to, or nothing if it takes longer than `limit`: for libraries that open files of the host's by themselves, each of
/// which may be a FIFO now. It has a thread of its own, which stays then; [`run`]'s are few.
pub fn within<T: Send + 'static>(limit: Duration, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = mpsc::sync_channel(1);
    // Nobody listens any more where it took too long.
    let asked = thread::Builder::new().spawn(move || drop(answer.send(act())));
    asked.ok().and_then(|_| answered.recv_timeout(limit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_not_waited_for() {
        let (hold, held) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || held.recv().is_ok()), None);
        assert_eq!(within(Duration::from_secs(20), || 7), Some(7));
        drop(hold);
    }

    #[test]
    fn a_runtime_that_ends_takes_waiting_calls_with_it_quietly() {
        let (panicked, panics) = mpsc::channel();
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |_| panicked.send(()).unwrap_or_default()));
        // One blocking thread that is busy, so that the second call is still queued when the runtime ends.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).build().unwrap();
        let (hold, held) = mpsc::channel::<()>();
        runtime.spawn(run(move || held.recv().is_ok()));
        runtime.spawn(run(|| ()));
        runtime.shutdown_timeout(Duration::from_millis(50));
        drop(hold);
        panic::set_hook(earlier);
        assert!(panics.try_recv().is_err(), "a cancelled call panicked");
    }
}
