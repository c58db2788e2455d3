//! Runs the steps of a look at the host, each with a time in which it must answer.
//!
//! A step runs on a thread of its own while the next waits. One that does not answer (a read from a file system whose server is gone
//! cannot be interrupted) is left behind with its thread, and the others go on with a new one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use breakglass_api::v1::left_behind::Category;

use super::{
    files::Host,
    snapshot::{CUTS_FULL, CUTS_MAX, Cut, Item, Sink, Snapshot},
    text::bounded_key,
};

/// How long past its time a step may need to notice that it is over, before it counts as stuck.
const GRACE: Duration = Duration::from_secs(1);

/// No look is given longer, whatever the limits say.
const LONGEST: Duration = Duration::from_secs(3600);

/// Steps that may get stuck before the look ends: the host is full of traps, and time is better spent on saying so.
const STUCK_MAX: u32 = 4;

/// Threads of this module in the whole process, stuck ones of earlier looks included.
const THREADS_MAX: usize = 32;

static THREADS: AtomicUsize = AtomicUsize::new(0);

type Job = Box<dyn FnOnce() + Send>;

/// Which part of a snapshot a step is about.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// Unspecified: several.
    pub(super) category: Category,
    /// Empty: no place in particular.
    pub(super) place: Vec<u8>,
}

/// Gathers what the steps find.
pub(super) struct Runner {
    host: Arc<Host>,
    started: Instant,
    end: Instant,
    worker: Option<SyncSender<Job>>,
    stuck: u32,
    snapshot: Snapshot,
    /// Items by category.
    counts: [usize; CATEGORIES],
}

/// One more than the highest category.
const CATEGORIES: usize = Category::Trust as usize + 1;

impl Runner {
    pub(super) fn new(host: Host) -> Self {
        let started = Instant::now();
        let end = started + host.limits.time.min(LONGEST);
        let snapshot = Snapshot::default();
        Self { host: Arc::new(host), started, end, worker: None, stuck: 0, snapshot, counts: [0; CATEGORIES] }
    }

    /// Runs one step for at most `time`. `None` where it did not finish; the snapshot then says so.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        scope: Scope,
        time: Duration,
        step: impl FnOnce(&Host, &mut Sink) -> T + Send + 'static,
    ) -> Option<T> {
        let end = self.end.min(Instant::now() + time.min(LONGEST));
        if Instant::now() >= end {
            return self.missed(scope, "the time was over before it was looked at");
        }
        if self.stuck >= STUCK_MAX {
            return self.missed(scope, "not looked at, because too many other places do not answer");
        }
        let (answer, answered) = sync_channel(1);
        let host = Arc::clone(&self.host);
        let job = move || {
            let mut sink = Sink::new(end, host.limits.items);
            let value = step(&host, &mut sink);
            // Nobody waits any more if it took too long.
            let _ = answer.send((value, sink));
        };
        if !self.start(Box::new(job)) {
            return self.missed(scope, "not looked at, because no thread could be started");
        }
        match answered.recv_timeout(end.saturating_duration_since(Instant::now()) + GRACE) {
            Ok((value, sink)) => {
                self.take(sink);
                Some(value)
            }
            Err(error) => {
                self.worker = None;
                self.stuck += 1;
                let failed = error == RecvTimeoutError::Disconnected;
                self.missed(scope, if failed { "failed; the agent's log says how" } else { "did not answer in time" })
            }
        }
    }

    /// What was found.
    pub(super) fn finish(mut self) -> Snapshot {
        self.snapshot.put_in_order();
        self.snapshot.took_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.snapshot
    }

    fn start(&mut self, job: Job) -> bool {
        if self.worker.is_none() {
            self.worker = worker();
        }
        self.worker.as_ref().is_some_and(|worker| worker.send(job).is_ok())
    }

    fn take(&mut self, sink: Sink) {
        for item in sink.items {
            self.keep(item);
        }
        for cut in sink.cuts {
            self.cut(cut);
        }
    }

    fn keep(&mut self, item: Item) {
        let limit = self.host.limits.items;
        let Some(count) = usize::try_from(item.category).ok().and_then(|at| self.counts.get_mut(at)) else { return };
        *count += 1;
        if *count <= limit {
            self.snapshot.items.push(item);
        } else if *count == limit + 1 {
            let why = format!("more than {limit} things to compare; the rest was left out");
            self.cut(Cut { category: item.category, place: Vec::new(), why });
        }
    }

    fn cut(&mut self, cut: Cut) {
        if self.snapshot.cuts.len() < CUTS_MAX {
            self.snapshot.cuts.push(cut);
        } else if self.snapshot.cuts.len() == CUTS_MAX {
            self.snapshot.cuts.push(Cut { why: CUTS_FULL.to_owned(), ..Cut::default() });
        }
    }

    fn missed<T>(&mut self, scope: Scope, why: &str) -> Option<T> {
        self.say(scope, why);
        None
    }

    /// Puts into the snapshot that a part was cut short.
    pub(super) fn say(&mut self, scope: Scope, why: &str) {
        let why = match (scope.category, scope.place.is_empty()) {
            (category, true) => format!("{}: {why}", super::words::category_word(category)),
            (_, false) => why.to_owned(),
        };
        self.cut(Cut { category: scope.category.into(), place: bounded_key(&scope.place), why });
    }
}

/// Starts a thread that runs jobs until nobody can send any.
fn worker() -> Option<SyncSender<Job>> {
    if THREADS.fetch_add(1, Ordering::Relaxed) >= THREADS_MAX {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let (jobs, waiting) = sync_channel::<Job>(1);
    let run = move || {
        work(&waiting);
        THREADS.fetch_sub(1, Ordering::Relaxed);
    };
    match thread::Builder::new().name("aftermath".into()).spawn(run) {
        Ok(_) => Some(jobs),
        Err(error) => {
            THREADS.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(%error, "no thread to look for what the session left behind");
            None
        }
    }
}

fn work(jobs: &Receiver<Job>) {
    for job in jobs {
        // Whoever waits sees its channel close, and says that the step did not answer.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a step of the search for what the session left behind failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aftermath::Limits;

    fn runner(limits: Limits) -> Runner {
        Runner::new(Host::open(std::path::Path::new("/"), limits).unwrap())
    }

    fn scope() -> Scope {
        Scope { category: Category::Cron, place: Vec::new() }
    }

    #[test]
    fn a_step_that_never_answers_costs_only_itself() {
        let mut runner = runner(Limits::default());
        let (release, held) = sync_channel::<()>(0);
        let none = runner.run(scope(), Duration::from_millis(1), move |_, _| held.recv().is_ok());
        assert_eq!(none, None);
        assert_eq!(runner.run(scope(), Duration::from_secs(5), |_, _| 7), Some(7));
        let snapshot = runner.finish();
        assert_eq!(snapshot.cuts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["cron: did not answer in time"]);
        drop(release);
    }

    #[test]
    fn a_step_that_panics_costs_only_itself() {
        let mut runner = runner(Limits::default());
        let none: Option<()> = runner.run(scope(), Duration::from_secs(5), |_, _| panic!("on purpose"));
        assert_eq!(none, None);
        assert_eq!(runner.run(scope(), Duration::from_secs(5), |_, _| 7), Some(7));
        assert_eq!(runner.finish().cuts[0].to_string(), "cron: failed; the agent's log says how");
    }

    #[test]
    fn when_the_time_is_over_the_rest_is_said() {
        let mut runner = runner(Limits { time: Duration::ZERO, ..Limits::default() });
        assert_eq!(runner.run(scope(), Duration::from_secs(5), |_, _| 7), None);
        assert_eq!(runner.finish().cuts.len(), 1);
    }
}
