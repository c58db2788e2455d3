//! What wrong proofs may cost.
//!
//! Checking a signature takes a fraction of a millisecond of processor, and anybody who can connect can ask for it. Sources
//! that recently sent a wrong proof share one lane: there one proof is checked after the other, and after each wrong one
//! the lane rests for [`REST`] times as long as the check took. So wrong proofs together take at most about a fifth of one
//! core, whatever their number. Nobody is ever locked out: a right proof from such a source waits for the few before it (one
//! for each of the source's connections), and a source without wrong proofs does not wait for the lane at all.
//!
//! A TLS handshake costs as much as a check, and comes before anything can be proved. Connections of the same sources take turns to begin
//! theirs, [`TURN`] apart; how long the other side then takes holds up nobody.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Mutex as Lane, Semaphore};

use super::source::Group;
use crate::blocking;

/// Rest after a wrong proof, as a multiple of what it took.
const REST: u32 = 4;
/// Between the beginnings of two handshakes with sources that sent wrong proofs. A handshake takes a third of a millisecond.
const TURN: Duration = Duration::from_millis(3);
/// Longest rest: the measured time includes what the machine did meanwhile.
const REST_MAX: Duration = Duration::from_millis(20);
/// How long a source that sent a wrong proof stays in the lane.
const MEMORY: Duration = Duration::from_secs(60);
/// Most sources that are remembered. With more the oldest is forgotten: it gets one more check outside the lane.
const SOURCES_MAX: usize = 4096;
/// Checks outside the lane that run at once.
const AT_ONCE: usize = 2;

/// Runs checks off the runtime's threads, within bounds.
pub struct Checks {
    permits: Semaphore,
    lane: Lane<()>,
    turns: Lane<()>,
    failed: Mutex<HashMap<Group, Instant>>,
    rest_max: Duration,
}

impl Default for Checks {
    fn default() -> Self {
        Self::resting(REST_MAX)
    }
}

impl Checks {
    /// With another longest rest, for checks that cost more.
    pub fn resting(rest_max: Duration) -> Self {
        Self {
            permits: Semaphore::new(AT_ONCE),
            lane: Lane::new(()),
            turns: Lane::new(()),
            failed: Mutex::default(),
            rest_max,
        }
    }

    /// Runs `check`; an `Err` counts against the source.
    pub async fn run<T, E>(&self, group: Group, check: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        if !self.failed_recently(group) {
            // Never closed, so this does not fail.
            let _permit = self.permits.acquire().await.ok();
            let (result, _) = measured(check).await;
            if result.is_err() {
                self.remember(group);
            }
            return result;
        }
        let _lane = self.lane.lock().await;
        let (result, took) = measured(check).await;
        if result.is_err() {
            self.remember(group);
            tokio::time::sleep((took * REST).min(self.rest_max)).await;
        }
        result
    }

    /// Waits until a handshake with the source may begin.
    pub async fn turn(&self, group: Group) {
        if self.failed_recently(group) {
            let _turn = self.turns.lock().await;
            tokio::time::sleep(TURN).await;
        }
    }

    fn failed_recently(&self, group: Group) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(&group).is_some_and(|at| at.elapsed() < MEMORY)
    }

    fn remember(&self, group: Group) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= SOURCES_MAX && !failed.contains_key(&group) {
            failed.retain(|_, at| at.elapsed() < MEMORY);
            let oldest = failed.iter().min_by_key(|(_, at)| **at).map(|(group, _)| *group);
            if let Some(oldest) = oldest.filter(|_| failed.len() >= SOURCES_MAX) {
                failed.remove(&oldest);
            }
        }
        failed.insert(group, Instant::now());
    }
}

/// The result, and how long the check itself ran.
async fn measured<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> (T, Duration) {
    let timed = move || {
        let started = Instant::now();
        let result = check();
        (result, started.elapsed())
    };
    blocking::run(timed).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn wrong() -> Result<(), ()> {
        let until = Instant::now() + Duration::from_millis(2);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        Err(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wrong_proofs_are_held_down_and_right_ones_get_through() {
        let checks = Arc::new(Checks::default());
        let started = Instant::now();
        let flood: Vec<_> = (0..8)
            .map(|_| {
                let checks = Arc::clone(&checks);
                tokio::spawn(async move {
                    let mut done = 0;
                    while started.elapsed() < Duration::from_millis(600) {
                        checks.run(Group::User(1), wrong).await.unwrap_err();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut rights = 0;
        while started.elapsed() < Duration::from_millis(500) {
            for user in [1, 2] {
                checks.run(Group::User(user), || Ok::<(), ()>(())).await.unwrap();
            }
            rights += 1;
        }
        let mut wrongs = 0;
        for task in flood {
            wrongs += task.await.unwrap();
        }
        // 2 ms each with 8 ms of rest: 60 in 600 ms, and the first ones outside the lane.
        assert!(wrongs <= 80, "{wrongs} wrong proofs were checked");
        // Eight wrong ones before each, 10 ms apiece: 80 ms on an idle machine.
        assert!(rights >= 2, "only {rights} right proofs got through");
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_take_turns_where_proofs_were_wrong() {
        let checks = Checks::default();
        checks.remember(Group::User(1));
        let started = tokio::time::Instant::now();
        futures_util::future::join_all((0..100).map(|_| checks.turn(Group::User(2)))).await;
        assert_eq!(started.elapsed(), Duration::ZERO, "nothing wrong came from there");
        futures_util::future::join_all((0..100).map(|_| checks.turn(Group::User(1)))).await;
        assert!(started.elapsed() >= 100 * TURN, "{:?}", started.elapsed());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let checks = Checks::default();
        for user in 0..2 * SOURCES_MAX {
            checks.remember(Group::User(user as u32));
        }
        assert_eq!(checks.failed.lock().unwrap().len(), SOURCES_MAX);
        assert!(checks.failed_recently(Group::User(2 * SOURCES_MAX as u32 - 1)));
    }
}
