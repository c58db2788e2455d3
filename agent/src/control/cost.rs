//! What wrong proofs may cost.
//!
//! Checking a signature takes a fraction of a millisecond of processor, and anybody who can connect can ask for it. Sources
//! that recently sent a wrong proof are held down: of them one proof is checked after the other, and what a wrong one took has to
//! be earned back at a share of one core before the next is checked. There are two such lanes, so that a right proof is not behind the
//! flood that comes from the same source:
//!
//! | lane | for | share of a core |
//! |---|---|---|
//! | first tries | the first proof over a connection for a challenge that no wrong proof was sent for | [`FIRST_SHARE`] |
//! | repeats | whatever else | [`REPEAT_SHARE`] |
//!
//! So wrong proofs together take a fifth of one core at most, whatever their number. Whoever floods keeps to the second lane, or has to
//! fetch a challenge and connect anew for each proof, and then stands in the first with at most as many as one source has connections.
//! Nobody is ever locked out: in both lanes a proof waits for the few before it, and a source without wrong proofs does not wait
//! for a lane at all.
//!
//! A TLS handshake costs as much as a check, and comes before anything can be proved. Connections of the same sources take turns to begin
//! theirs, [`TURN`] apart; how long the other side then takes holds up nobody.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as Lane, Semaphore},
    time::Instant,
};

use super::source::Group;
use crate::blocking;

/// What wrong first tries may take of one core.
const FIRST_SHARE: f64 = 0.14;
/// What wrong repeats may take of one core.
const REPEAT_SHARE: f64 = 0.06;
/// What wrong guesses at one-time codes may take of one core; there is one lane for them.
const GUESS_SHARE: f64 = 0.2;
/// Processor time that a lane saves up for while it is not used: what comes after a quiet second does not wait.
const SAVED: Duration = Duration::from_millis(4);
/// Between the beginnings of two handshakes with sources that sent wrong proofs. A handshake takes a third of a millisecond.
const TURN: Duration = Duration::from_millis(3);
/// Longest rest after a wrong proof: the measured time includes what the machine did meanwhile.
const REST_MAX: Duration = Duration::from_millis(20);
/// Longest rest after a wrong one-time code: at 64 random bits the rate of guesses does not matter, what they cost does.
const GUESS_REST_MAX: Duration = Duration::from_millis(500);
/// How long a source that sent a wrong proof stays in the lanes.
const MEMORY: Duration = Duration::from_secs(60);
/// Most sources, and most challenges, that are remembered. With more the oldest is forgotten: it gets one more check.
const REMEMBERED_MAX: usize = 4096;
/// Checks outside the lanes that run at once.
const AT_ONCE: usize = 2;

/// A challenge, or what stands for one; opaque.
pub type Challenge = Vec<u8>;

/// What is told of a proof before it is checked.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Where it comes from.
    pub group: Group,
    /// Whether a wrong one came over the same connection.
    pub failed_before: bool,
    /// The challenge that it answers, if that is one of this host's.
    pub challenge: Option<Challenge>,
}

/// Runs checks off the runtime's threads, within bounds.
pub struct Checks {
    permits: Semaphore,
    first: Lane<Budget>,
    repeats: Lane<Budget>,
    turns: Lane<()>,
    sources: Recent<Group>,
    challenges: Recent<Challenge>,
}

impl Default for Checks {
    /// For proofs.
    fn default() -> Self {
        Self::with(Budget::new(FIRST_SHARE, REST_MAX), Budget::new(REPEAT_SHARE, REST_MAX))
    }
}

impl Checks {
    /// For one-time codes, which cost more and have no challenge: see [`Self::guess`].
    pub fn of_codes() -> Self {
        Self::with(Budget::new(GUESS_SHARE, GUESS_REST_MAX), Budget::new(GUESS_SHARE, GUESS_REST_MAX))
    }

    fn with(first: Budget, repeats: Budget) -> Self {
        Self {
            permits: Semaphore::new(AT_ONCE),
            first: Lane::new(first),
            repeats: Lane::new(repeats),
            turns: Lane::new(()),
            sources: Recent::default(),
            challenges: Recent::default(),
        }
    }

    /// Runs the check of a proof; an `Err` counts against its source and its challenge.
    pub async fn run<T, E>(
        &self,
        attempt: Attempt,
        check: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let known = attempt.challenge.as_ref().is_some_and(|challenge| !self.challenges.contains(challenge));
        let lane = if known && !attempt.failed_before { &self.first } else { &self.repeats };
        let result = self.held_down(lane, attempt.group, check).await;
        if let (Err(_), Some(challenge)) = (&result, attempt.challenge) {
            self.challenges.insert(challenge);
        }
        result
    }

    /// Runs the check of a one-time code; an `Err` counts against the source.
    pub async fn guess<T, E>(&self, group: Group, check: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.held_down(&self.first, group, check).await
    }

    async fn held_down<T, E>(
        &self,
        lane: &Lane<Budget>,
        group: Group,
        check: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        if !self.sources.contains(&group) {
            // Never closed, so this does not fail.
            let _permit = self.permits.acquire().await.ok();
            let (result, _) = measured(check).await;
            if result.is_err() {
                self.sources.insert(group);
            }
            return result;
        }
        let mut budget = lane.lock().await;
        tokio::time::sleep(budget.owed()).await;
        let (result, took) = measured(check).await;
        if result.is_err() {
            self.sources.insert(group);
            budget.spend(took);
        }
        result
    }

    /// Waits until a handshake with the source may begin.
    pub async fn turn(&self, group: Group) {
        if self.sources.contains(&group) {
            let _turn = self.turns.lock().await;
            tokio::time::sleep(TURN).await;
        }
    }
}

/// Processor time that wrong proofs may take: earned at a share of one core, and owed where more was spent.
struct Budget {
    share: f64,
    /// Longest time until what is owed is earned.
    rest_max: Duration,
    /// What is left to be spent, seconds; negative: owed.
    left: f64,
    /// When `left` was right.
    at: Instant,
}

impl Budget {
    fn new(share: f64, rest_max: Duration) -> Self {
        Self { share, rest_max, left: SAVED.as_secs_f64(), at: Instant::now() }
    }

    fn earn(&mut self) {
        let now = Instant::now();
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.share;
        self.left = (self.left + earned).min(SAVED.as_secs_f64());
        self.at = now;
    }

    /// How long until nothing is owed.
    fn owed(&mut self) -> Duration {
        self.earn();
        if self.left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.left / self.share) }
    }

    fn spend(&mut self, took: Duration) {
        self.earn();
        self.left = (self.left - took.as_secs_f64()).max(-self.rest_max.as_secs_f64() * self.share);
    }
}

/// What sent or saw a wrong proof within [`MEMORY`].
struct Recent<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for Recent<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Recent<K> {
    fn contains(&self, key: &K) -> bool {
        self.entries().get(key).is_some_and(|at| at.elapsed() < MEMORY)
    }

    fn insert(&self, key: K) {
        let mut entries = self.entries();
        if entries.len() >= REMEMBERED_MAX && !entries.contains_key(&key) {
            entries.retain(|_, at| at.elapsed() < MEMORY);
            let oldest = entries.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| entries.len() >= REMEMBERED_MAX) {
                entries.remove(&oldest);
            }
        }
        entries.insert(key, Instant::now());
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result, and how long the check itself ran.
async fn measured<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> (T, Duration) {
    let timed = move || {
        let started = std::time::Instant::now();
        let result = check();
        (result, started.elapsed())
    };
    blocking::run(timed).await
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    fn wrong() -> Result<(), ()> {
        let until = std::time::Instant::now() + Duration::from_millis(2);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        Err(())
    }

    fn attempt(user: u32, challenge: u32, failed_before: bool) -> Attempt {
        Attempt { group: Group::User(user), failed_before, challenge: Some(challenge.to_be_bytes().into()) }
    }

    /// Eight connections that send one wrong proof after the other for so long; says how many were checked.
    fn flood(checks: &Arc<Checks>, lasting: Duration, next: fn(u32) -> Attempt) -> tokio::task::JoinHandle<u32> {
        let (checks, number) = (Arc::clone(checks), Arc::new(AtomicU32::new(0)));
        tokio::spawn(async move {
            let started = Instant::now();
            let each = (0..8).map(|_| async {
                while started.elapsed() < lasting {
                    checks.run(next(number.fetch_add(1, Ordering::SeqCst)), wrong).await.unwrap_err();
                }
            });
            futures_util::future::join_all(each).await;
            number.load(Ordering::SeqCst)
        })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wrong_proofs_are_held_down_and_right_ones_pass_them() {
        let checks = Arc::new(Checks::default());
        // Over connections that stay, against one challenge.
        let flood = flood(&checks, Duration::from_millis(600), |n| attempt(1, 0, n >= 8));
        let started = Instant::now();
        let mut rights = 0;
        while started.elapsed() < Duration::from_millis(500) {
            for user in [1, 2] {
                checks.run(attempt(user, 1, false), || Ok::<(), ()>(())).await.unwrap();
            }
            rights += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // 2 ms each, and at most 20 ms of rest: 28 in 600 ms, and the first ones outside the lanes.
        let wrongs = flood.await.unwrap();
        assert!(wrongs <= 48, "{wrongs} wrong proofs were checked");
        // Behind one another's they would wait for eight of those, each time: six at most.
        assert!(rights >= 30, "only {rights} right proofs got through");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_challenge_and_a_connection_each_are_held_down_as_well_and_lock_nobody_out() {
        let checks = Arc::new(Checks::default());
        let flood = flood(&checks, Duration::from_millis(600), |n| attempt(1, n, false));
        let started = Instant::now();
        let (mut first, mut repeated) = (0, 0);
        while started.elapsed() < Duration::from_millis(500) {
            checks.run(attempt(1, u32::MAX, false), || Ok::<(), ()>(())).await.unwrap();
            first += 1;
            checks.run(attempt(1, u32::MAX, true), || Ok::<(), ()>(())).await.unwrap();
            repeated += 1;
        }
        let wrongs = flood.await.unwrap();
        // 2 ms each with 14 ms in all: 43 in 600 ms, and the first ones.
        assert!(wrongs <= 64, "{wrongs} wrong proofs were checked");
        assert!(first >= 2 && repeated >= 2, "{first} and {repeated} right proofs got through");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_spent_is_earned_back_and_no_more_than_that() {
        let mut budget = Budget::new(0.1, Duration::from_millis(500));
        assert_eq!(budget.owed(), Duration::ZERO);
        budget.spend(SAVED + Duration::from_millis(10));
        let owed = budget.owed();
        assert!((owed.as_secs_f64() - 0.1).abs() < 1e-3, "{owed:?}");
        tokio::time::sleep(owed).await;
        assert!(budget.owed() < Duration::from_millis(1));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        budget.spend(SAVED);
        assert_eq!(budget.owed(), Duration::ZERO, "an hour of quiet is worth no more than a moment");
        budget.spend(Duration::from_secs(1));
        assert_eq!(
            budget.owed(),
            Duration::from_millis(500),
            "a check that the machine held up is not paid for in full"
        );
    }

    #[tokio::test]
    async fn a_challenge_that_failed_once_is_no_first_try() {
        let checks = Checks::default();
        checks.sources.insert(Group::User(1));
        let held = checks.repeats.lock().await;
        checks.run(attempt(1, 1, false), || Ok::<(), ()>(())).await.unwrap();
        checks.run(attempt(1, 1, false), || Err::<(), ()>(())).await.unwrap_err();
        for repeat in [attempt(1, 1, false), attempt(1, 2, true), Attempt { challenge: None, ..attempt(1, 3, false) }] {
            let run = checks.run(repeat.clone(), || Ok::<(), ()>(()));
            let waited = tokio::time::timeout(Duration::from_millis(20), run).await;
            assert!(waited.is_err(), "{repeat:?} did not wait for its lane");
        }
        drop(held);
        checks.run(attempt(1, 1, false), || Ok::<(), ()>(())).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_take_turns_where_proofs_were_wrong() {
        let checks = Checks::default();
        checks.sources.insert(Group::User(1));
        let started = Instant::now();
        futures_util::future::join_all((0..100).map(|_| checks.turn(Group::User(2)))).await;
        assert_eq!(started.elapsed(), Duration::ZERO, "nothing wrong came from there");
        futures_util::future::join_all((0..100).map(|_| checks.turn(Group::User(1)))).await;
        assert!(started.elapsed() >= 100 * TURN, "{:?}", started.elapsed());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let recent = Recent::default();
        for user in 0..2 * REMEMBERED_MAX {
            recent.insert(Group::User(user as u32));
        }
        assert_eq!(recent.entries().len(), REMEMBERED_MAX);
        assert!(recent.contains(&Group::User(2 * REMEMBERED_MAX as u32 - 1)));
    }
}
