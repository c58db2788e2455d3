//! The agent's sign of life, and the proof that its programs still run.
//!
//! A thread of its own beats several times a second, so that a stopped, frozen or dead agent is known to the kernel programs at
//! once, while a slow disk is not mistaken for one: what cannot be written stays in the rings until those are full. Once a second
//! it does something for programs of each kind to see (a canary); link state proves nothing, since one sysctl switches programs
//! at functions and hooks off and leaves them attached. Programs that do not see it are blind, and everybody hears of it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use breakglass_abi::{
    Agent, Pulse, Settings,
    settings::{AGENT_ALIVE, CANARY_FUNCTION, CANARY_HOOK, CANARY_TRACEPOINT, PULSE_BLIND, PULSE_SPOOL_FULL},
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    pty::{OpenptyResult, openpty},
    sys::memfd::{MFdFlags, memfd_create},
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    time::{ClockId, clock_gettime},
};
use rustix::fs::OFlags;
use tokio::sync::Notify;

use super::{
    error::KernelError,
    guard::{self, Belongings, Guarded, Place},
    maps::{GuardMaps, Life, Maps},
    object::Means,
    pins::Pins,
};
use crate::{
    config::Tier,
    procfs::{self, Stat},
};

/// How often the agent shows that it lives.
const BEAT: Duration = Duration::from_millis(250);
/// How often the programs prove that they run while a session is open.
const PROVE_EVERY: Duration = Duration::from_secs(1);
/// How often what is guarded is looked up anew: files are replaced at rest, when packages are upgraded.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// How long a start waits for the first proof, and how often it looks.
const FIRST_PROOF: Duration = Duration::from_secs(5);
const FIRST_PROOF_POLL: Duration = Duration::from_millis(1);
/// Most notices that wait to be recorded; more than that repeat themselves.
const NOTICES_MAX: usize = 64;

/// Something that the record should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Stable word, the alert's code.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

/// What the thread and the rest of the agent tell each other.
pub struct Health {
    spool_full: AtomicBool,
    stopping: AtomicBool,
    /// Whether the programs are attached, so that they can be asked for proof.
    attached: AtomicBool,
    /// Whether they have been asked.
    asked: AtomicBool,
    blind: Mutex<Blind>,
    /// What the programs were told last; held while they are told something else. Nothing before they are in charge.
    told: Mutex<Option<Settings>>,
    notices: Mutex<VecDeque<Notice>>,
    noticed: Notify,
    means: Means,
    /// Where the pins are, which get their name once everything works.
    pins: Mutex<Pins>,
}

/// Which kinds of programs do not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blind {
    /// At tracepoints.
    pub tracepoints: bool,
    /// At function exits.
    pub functions: bool,
    /// At security hooks.
    pub hooks: bool,
}

impl Blind {
    fn any(self) -> bool {
        self.tracepoints || self.functions || self.hooks
    }
}

impl Health {
    /// Says whether the spool takes what comes. While it does not, no program of a session starts.
    pub fn set_spool_full(&self, full: bool) {
        self.spool_full.store(full, Ordering::Relaxed);
    }

    /// Tells the programs; from now on what somebody else tells them is noticed and taken back.
    pub fn tell_settings(&self, maps: &mut Maps, settings: Settings) -> Result<(), KernelError> {
        let mut told = self.told();
        maps.set_settings(settings)?;
        *told = Some(settings);
        Ok(())
    }

    /// What the programs were told last.
    pub fn told_settings(&self) -> Option<Settings> {
        *self.told()
    }

    fn told(&self) -> MutexGuard<'_, Option<Settings>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which kinds of programs do not run.
    pub fn blind(&self) -> Blind {
        *self.blind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of a tier.
    pub fn tier(&self, tier: Tier) -> Tier {
        let blind = self.blind();
        match tier {
            _ if blind.tracepoints => Tier::None,
            Tier::Full | Tier::Trace if blind.functions => Tier::Basic,
            Tier::Full if blind.hooks => Tier::Trace,
            tier => tier,
        }
    }

    /// Waits for what the record should say.
    pub async fn notice(&self) -> Notice {
        loop {
            let noticed = self.noticed.notified();
            if let Some(notice) = self.notices.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return notice;
            }
            noticed.await;
        }
    }

    /// What the record should say, if anything.
    pub fn take_notice(&self) -> Option<Notice> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn say(&self, code: &'static str, message: String) {
        tracing::error!(code, "{message}");
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if notices.len() < NOTICES_MAX {
            notices.push_back(Notice { code, message });
        }
        drop(notices);
        self.noticed.notify_one();
    }
}

/// What the agent does for its programs to see.
struct Canaries {
    /// A pair of terminals of nobody's.
    terminal: OpenptyResult,
    /// A file that nobody may open for writing.
    refused: OwnedFd,
}

impl Canaries {
    fn new() -> io::Result<Self> {
        let terminal = openpty(None, None)?;
        let mut modes = tcgetattr(&terminal.slave)?;
        cfmakeraw(&mut modes);
        tcsetattr(&terminal.slave, SetArg::TCSANOW, &modes)?;
        let flags = OFlag::from_bits_truncate(fcntl(&terminal.master, FcntlArg::F_GETFL)?);
        fcntl(&terminal.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let refused = memfd_create(c"breakglass-canary", MFdFlags::MFD_CLOEXEC)?;
        Ok(Self { terminal, refused })
    }

    fn place(&self) -> io::Result<Place> {
        File::from(self.refused.try_clone()?).metadata().map(|meta| guard::place(&meta))
    }

    /// A thread comes and goes.
    fn fork(&self) -> io::Result<()> {
        thread::Builder::new().name("canary".into()).spawn(|| {})?.join().map_err(|_| io::Error::other("it panicked"))
    }

    /// A byte passes through a terminal.
    fn write(&self) -> io::Result<()> {
        let mut slave = File::from(self.terminal.slave.try_clone()?);
        slave.write_all(b".")?;
        let mut master = File::from(self.terminal.master.try_clone()?);
        // Whether it is there yet does not matter; it must only not fill up.
        match master.read(&mut [0; 64]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether an open that must be refused was refused.
    fn open(&self) -> bool {
        let path = format!("self/fd/{}", self.refused.as_raw_fd());
        matches!(procfs::open(&path, OFlags::WRONLY), Err(error) if error.raw_os_error() == Some(libc::EPERM))
    }
}

/// The thread. It ends when this is dropped; the kernel programs then find the agent stopped.
pub struct Heart {
    health: Arc<Health>,
    belongings: Belongings,
    canary: Place,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    /// Makes this process known as the agent and begins to beat.
    pub fn start(
        pins: &Pins,
        means: Means,
        belongings: Belongings,
        stale_after: Duration,
    ) -> Result<Self, KernelError> {
        let failed = |action| move |source: io::Error| KernelError::Io { action, source };
        let canaries = Canaries::new().map_err(failed("cannot make what proves that programs run"))?;
        let health = Arc::new(Health {
            spool_full: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            blind: Mutex::default(),
            told: Mutex::default(),
            notices: Mutex::default(),
            noticed: Notify::new(),
            means,
            pins: Mutex::new(pins.clone()),
        });
        let canary = canaries.place().map_err(failed("cannot make what proves that programs run"))?;
        let mut beating = Beating {
            life: Life::open(pins)?,
            health: Arc::clone(&health),
            place: canary,
            canaries,
            belongings: belongings.clone(),
            limit_ms: u32::try_from(stale_after.as_millis()).unwrap_or(u32::MAX),
            open_slot: 0,
            cgroup: guard::own_cgroup(),
            known: Guarded::default(),
        };
        beating.life.set_agent(this_process().map_err(failed("cannot look at the agent's own process"))?)?;
        beating.beat()?;
        let thread = thread::Builder::new().name("heart".into()).spawn(move || beating.run());
        let thread = thread.map_err(failed("cannot start the thread that shows that the agent lives"))?;
        Ok(Self { health, belongings, canary, thread: Some(thread) })
    }

    /// What the thread and the rest of the agent tell each other.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Tells the programs what is guarded.
    pub fn tell_what_is_guarded(&self, pins: &Pins) -> Result<(), KernelError> {
        if self.health.means.security_hooks { guard::tell(pins, &self.belongings, Some(self.canary)) } else { Ok(()) }
    }

    /// The programs are attached: waits until each kind has proved that it runs, or has not.
    pub fn attached(&self) {
        self.health.attached.store(true, Ordering::Release);
        let limit = Instant::now() + FIRST_PROOF;
        while !self.health.asked.load(Ordering::Acquire) && Instant::now() < limit {
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
            thread::sleep(FIRST_PROOF_POLL);
        }
    }

    /// The pins have this place now.
    pub fn renamed(&self, pins: &Pins) {
        *self.health.pins.lock().unwrap_or_else(PoisonError::into_inner) = pins.clone();
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.health.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It holds nothing that its panic could have broken.
            let _ = thread.join();
        }
    }
}

struct Beating {
    life: Life,
    health: Arc<Health>,
    canaries: Canaries,
    place: Place,
    belongings: Belongings,
    limit_ms: u32,
    open_slot: u32,
    cgroup: Option<String>,
    /// What was guarded when it was last looked up.
    known: Guarded,
}

impl Beating {
    fn run(mut self) {
        let mut proved: Option<Instant> = None;
        let mut resolved: Option<Instant> = None;
        while !self.health.stopping.load(Ordering::Relaxed) {
            self.mend_settings();
            let slot = self.life.open_slot().unwrap_or(self.open_slot);
            let opened = slot != 0 && slot != self.open_slot;
            self.open_slot = slot;
            let is_due = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
            let attached = self.health.attached.load(Ordering::Acquire);
            if attached && (opened || proved.is_none() || (slot != 0 && is_due(proved, PROVE_EVERY))) {
                proved = Some(Instant::now());
                self.prove();
                self.health.asked.store(true, Ordering::Release);
                self.look_at_cgroup();
            }
            if self.health.means.security_hooks && (opened || is_due(resolved, RESOLVE_EVERY)) {
                resolved = Some(Instant::now());
                self.resolve(slot != 0 && !opened);
            }
            if let Err(error) = self.beat() {
                tracing::error!(%error, "the kernel programs cannot be told that the agent lives");
            }
            thread::park_timeout(BEAT);
        }
    }

    /// Root outside of tier `full` can write to the map that says which session is open and which programs are in charge.
    fn mend_settings(&mut self) {
        let told = self.health.told();
        let (Some(right), Ok(found)) = (*told, self.life.settings()) else { return };
        if found == right {
            return;
        }
        let mended = match self.life.set_settings(right) {
            Ok(()) => "they are as they were again; what happened meanwhile may not be recorded".to_owned(),
            Err(error) => format!("they cannot be set right: {error}"),
        };
        drop(told);
        self.health
            .say("settings-changed", format!("somebody else changed what the kernel programs are told: {mended}"));
    }

    fn beat(&mut self) -> Result<(), KernelError> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_err(|e| KernelError::Io { action: "cannot read the clock", source: e.into() })?;
        let mut flags = 0;
        if self.health.spool_full.load(Ordering::Relaxed) {
            flags |= PULSE_SPOOL_FULL;
        }
        if self.health.blind().any() {
            flags |= PULSE_BLIND;
        }
        let beat_ns = u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
        self.life.beat(Pulse { beat_ns, flags, limit_ms: self.limit_ms })
    }

    /// Does something for each kind to see, and compares.
    fn prove(&self) {
        let Ok(before) = self.life.canaries() else { return };
        let means = self.health.means;
        let in_session = self.open_slot != 0;
        let tried =
            [self.canaries.fork(), if means.function_exits && in_session { self.canaries.write() } else { Ok(()) }];
        let refused = !means.security_hooks || self.canaries.open();
        let (Ok(after), Ok(slot)) = (self.life.canaries(), self.life.open_slot()) else { return };
        if let Some(error) = tried.into_iter().find_map(Result::err) {
            tracing::warn!(%error, "whether the kernel programs run cannot be proved this time");
            return;
        }
        let seen = |kind: u32| after[kind as usize] > before[kind as usize];
        let was = self.health.blind();
        let now = Blind {
            tracepoints: !seen(CANARY_TRACEPOINT),
            // They are attached in sessions only.
            functions: if in_session && slot == self.open_slot {
                means.function_exits && !seen(CANARY_FUNCTION)
            } else {
                slot != 0 && was.functions
            },
            hooks: means.security_hooks && !(refused && seen(CANARY_HOOK)),
        };
        *self.health.blind.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.tell(was.tracepoints, now.tracepoints, ["blinded-tracepoints", "restored-tracepoints"], "tracepoints");
        self.tell(was.functions, now.functions, ["blinded-functions", "restored-functions"], "function exits");
        self.tell(was.hooks, now.hooks, ["blinded-hooks", "restored-hooks"], "security hooks");
    }

    fn tell(&self, was: bool, is: bool, codes: [&'static str; 2], what: &str) {
        let [blinded, restored] = codes;
        if is && !was {
            let tier = self.health.tier(Tier::Full);
            self.health.say(
                blinded,
                format!(
                    "programs at {what} are attached and do not run: somebody has switched them off; \
                     what is left is tier {tier}, and where policy denies what cannot be recorded, no program of a session starts"
                ),
            );
        } else if was && !is {
            self.health
                .say(restored, format!("programs at {what} run again; what happened meanwhile they have not seen"));
        }
    }

    /// Somebody who moves the agent to another group could freeze it there.
    fn look_at_cgroup(&mut self) {
        let now = guard::own_cgroup();
        if now == self.cgroup {
            return;
        }
        let (was, is) = (self.cgroup.take().unwrap_or_default(), now.clone().unwrap_or_default());
        if self.open_slot == 0 {
            self.cgroup = now;
            return;
        }
        let outcome = match guard::enter_cgroup(&was) {
            Ok(group) if group == was => "it has moved back".to_owned(),
            Ok(group) => format!("that is gone, and it has moved to {group}"),
            Err(error) => format!("it cannot move back: {error}"),
        };
        self.cgroup = guard::own_cgroup();
        self.health.say("guard-cgroup", format!("the agent was moved from the control group {was} to {is}; {outcome}"));
    }

    /// Looks up what is guarded. `guarded_so_far` says that nobody may have moved anything since the last time.
    fn resolve(&mut self, guarded_so_far: bool) {
        let pins = self.health.pins.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match guard::guarded(&self.belongings, &pins, Some(self.place)) {
            Ok(found) => found,
            // What was guarded stays so: less than that is never told.
            Err(error) => return tracing::error!(%error, "what is to be guarded cannot be looked up"),
        };
        if found == self.known {
            return;
        }
        if guarded_so_far && self.known.inodes.iter().any(|entry| !found.inodes.contains(entry)) {
            self.health.say(
                "guard-moved",
                "a file or folder of the agent's leads elsewhere than when it was guarded; see the session's mounts and renames"
                    .into(),
            );
        }
        let told = GuardMaps::open(&pins).and_then(|mut maps| guard::set(&mut maps, &found));
        match told {
            Ok(()) => self.known = found,
            Err(error) => tracing::error!(%error, "what is guarded cannot be brought up to date"),
        }
    }
}

/// This process, as the kernel programs will know it.
fn this_process() -> io::Result<Agent> {
    let stat = Stat::of(std::process::id())?;
    let (exe_dev, exe_inode) = guard::place(&procfs::metadata("self/exe")?);
    let mount_ns = procfs::metadata("self/ns/mnt")?;
    Ok(Agent {
        tgid: std::process::id(),
        state: AGENT_ALIVE,
        start_ticks: stat.start_ticks,
        exe_inode,
        exe_dev,
        mount_ns: u32::try_from(std::os::unix::fs::MetadataExt::ino(&mount_ns)).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(blind: Blind) -> Health {
        Health {
            spool_full: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            attached: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            blind: Mutex::new(blind),
            told: Mutex::default(),
            notices: Mutex::default(),
            noticed: Notify::new(),
            means: Means { function_exits: true, security_hooks: true },
            pins: Mutex::new(Pins::of_this_build(std::path::Path::new("/nonexistent"))),
        }
    }

    #[test]
    fn a_blind_kind_lowers_the_tier() {
        let seeing = Blind::default();
        let cases = [
            (seeing, Tier::Full, Tier::Full),
            (Blind { hooks: true, ..seeing }, Tier::Full, Tier::Trace),
            (Blind { hooks: true, ..seeing }, Tier::Basic, Tier::Basic),
            (Blind { functions: true, ..seeing }, Tier::Full, Tier::Basic),
            (Blind { functions: true, hooks: true, ..seeing }, Tier::Trace, Tier::Basic),
            (Blind { tracepoints: true, ..seeing }, Tier::Full, Tier::None),
        ];
        for (blind, tier, left) in cases {
            assert_eq!(health(blind).tier(tier), left, "{blind:?} {tier}");
        }
    }

    #[test]
    fn the_canaries_do_what_they_are_there_for() {
        let canaries = Canaries::new().unwrap();
        for _ in 0..1000 {
            canaries.write().unwrap();
        }
        canaries.fork().unwrap();
        // Nothing refuses it here.
        assert!(!canaries.open());
        let (dev, inode) = canaries.place().unwrap();
        assert!(dev != 0 && inode != 0);
    }

    #[test]
    fn this_process_is_found() {
        let agent = this_process().unwrap();
        assert_eq!(agent.tgid, std::process::id());
        assert!(agent.start_ticks > 0 && agent.exe_inode > 0 && agent.mount_ns > 0);
    }

    #[tokio::test]
    async fn notices_come_in_order_and_do_not_pile_up() {
        let health = health(Blind::default());
        for n in 0..NOTICES_MAX + 5 {
            health.say("x", n.to_string());
        }
        for n in 0..NOTICES_MAX {
            assert_eq!(health.notice().await.message, n.to_string());
        }
        assert_eq!(health.take_notice(), None);
    }
}
