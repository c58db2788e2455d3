//! Blocking calls off the runtime's threads.

use std::panic;

/// Runs `act` on a thread that may block, and passes on its panic. While the runtime shuts down it never resolves: the caller is about
/// to be dropped as well.
pub async fn run<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(act).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => panic::resume_unwind(panic),
        Err(Err(_cancelled)) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

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
