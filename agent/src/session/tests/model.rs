//! The manager as a state machine: any order of opening, extending, closing, waiting, killing and rebooting, with a crash possible before
//! and after every step that outlives the agent, the two copies of the note among them. Held after each move:
//!
//! - the account is open only for keys that a proof was given for, only until that proof's deadline, and only once that is recorded;
//! - nobody gets in after a close, after a restart, or after a reboot;
//! - while the agent lives, whoever proved themselves gets in until the deadline, and at the latest a moment after it all is locked.
//!
//! The world outlives the agent: the two locks, the notes on disk, the record, and a wall clock that is set as somebody likes. What the
//! key source says of a login is asked of the real one, with that clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::account::keys::{KeyGrant, Now, authorized_lines};

/// What outlives an agent.
struct World {
    /// Which agent is alive; what others do has no effect.
    life: u32,
    /// Steps until the crash.
    crash_in: Option<u32>,
    /// Calls until one fails without effect.
    fail_in: Option<u32>,
    key: Option<Access>,
    shadow_enabled: bool,
    boot: u32,
    booted: Instant,
    live: u32,
    /// Sessions of which the opening is on disk.
    recorded: Vec<Uuid>,
    /// Unix seconds; steps do not follow the boot clock.
    wall_s: i64,
    /// Where the notes are; changes with every death, so that the dead write elsewhere.
    notes: PathBuf,
    folder: tempfile::TempDir,
}

type Shared = Arc<Mutex<World>>;

impl World {
    fn new() -> Shared {
        // In memory, where there is such a disk: every note is synced.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let notes = folder.path().join("0");
        for part in ["state", "run"] {
            std::fs::create_dir_all(notes.join(part)).unwrap();
        }
        Arc::new(Mutex::new(Self {
            life: 0,
            crash_in: None,
            fail_in: None,
            key: None,
            shadow_enabled: false,
            boot: 0,
            booted: Instant::now(),
            live: 0,
            recorded: Vec::new(),
            wall_s: 1_790_000_000,
            notes,
            folder,
        }))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.booted.elapsed().as_nanos()).unwrap()
    }

    fn boot_id(&self) -> String {
        format!("{:032x}", self.boot)
    }

    /// The agent is gone, at this very moment.
    fn die(&mut self) {
        self.life += 1;
        self.crash_in = None;
        let next = self.folder.path().join(self.life.to_string());
        for part in ["state", "run"] {
            std::fs::create_dir_all(next.join(part)).unwrap();
            // Not there where no session was open.
            let _ = std::fs::copy(self.notes.join(part).join("session.json"), next.join(part).join("session.json"));
        }
        self.notes = next;
    }

    fn crashes(&mut self) -> bool {
        match &mut self.crash_in {
            Some(0) => self.die(),
            Some(left) => {
                *left -= 1;
                return false;
            }
            None => return false,
        }
        true
    }

    fn fails(&mut self) -> bool {
        match &mut self.fail_in {
            Some(0) => {
                self.fail_in = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// For whom the account is open now.
    fn open_for(&self) -> Option<&Access> {
        self.key.as_ref().filter(|access| self.shadow_enabled && self.key_source(access).is_some())
    }

    /// What the key source prints for a login now: lines with the time at which sshd, by the wall clock, forgets them.
    fn key_source(&self, access: &Access) -> Option<String> {
        let boot_id = [0; 16];
        let grant = KeyGrant {
            session: access.session,
            boot_id,
            deadline_boot_ns: access.deadline_boot_ns,
            by_code: access.by_code,
            verify: false,
            keys: access.keys.clone(),
        };
        let now = Now { boot_id, boot_ns: self.now(), wall_s: self.wall_s };
        authorized_lines(&grant, now)
    }
}

/// One agent's hands on the world.
#[derive(Clone)]
struct Hands {
    world: Shared,
    life: u32,
}

impl Hands {
    /// Does something that lasts, unless this agent is dead, or dies just before.
    fn step(&self, effect: impl FnOnce(&mut World)) {
        let mut world = self.world.lock().unwrap();
        if world.life != self.life || world.crashes() {
            return;
        }
        effect(&mut world);
        world.crashes();
    }

    fn fails(&self) -> bool {
        let mut world = self.world.lock().unwrap();
        world.life == self.life && world.fails()
    }
}

impl Machine for Hands {
    fn boot_ns(&self) -> u64 {
        self.world.lock().unwrap().now()
    }
    fn boot_id(&self) -> String {
        self.world.lock().unwrap().boot_id()
    }
    fn tier(&self) -> Tier {
        Tier::Basic
    }
    fn account(&self) -> (String, u32) {
        ("emergency".into(), 61000)
    }
    fn can_record(&self) -> Result<(), MachineError> {
        Ok(())
    }
    fn enable(&self, access: &Access) -> Result<String, MachineError> {
        if self.fails() {
            // As the account does where its second step fails.
            self.lock()?;
            return Err(MachineError("no".into()));
        }
        self.step(|world| world.shadow_enabled = true);
        self.step(|world| world.key = Some(access.clone()));
        Ok(String::new())
    }
    fn lock(&self) -> Result<String, MachineError> {
        self.step(|world| world.key = None);
        self.step(|world| world.shadow_enabled = false);
        Ok(String::new())
    }
    fn begin_recording(&self, _: u32) -> Result<(), MachineError> {
        self.step(|_| {});
        if self.fails() { Err(MachineError("no".into())) } else { Ok(()) }
    }
    fn forbid_new(&self, _: u32) -> Result<(), MachineError> {
        Ok(())
    }
    fn end_processes(&self, _: u32) -> Hunt {
        self.step(|world| world.live = 0);
        Hunt::default()
    }
    fn end_recording(&self, _: u32) -> Result<(), MachineError> {
        Ok(())
    }
    fn live(&self, _: u32) -> Vec<ProcessId> {
        (0..self.world.lock().unwrap().live).map(|n| ProcessId { tgid: n + 2, start_ns: 1 }).collect()
    }
    fn look_before(&self, _: Uuid) {}
    fn rotate(&self, _: &Intent) -> CredentialsRotated {
        CredentialsRotated::default()
    }
    fn left_behind(&self, _: Uuid) -> LeftBehind {
        LeftBehind::default()
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
}

impl Journal for Hands {
    async fn record(&self, session: Option<Uuid>, body: Body) -> Result<u64, String> {
        if matches!(body, Body::SessionOpened(_) | Body::SessionExtended(_)) && self.fails() {
            return Err("no space left on device".into());
        }
        self.step(|world| {
            if matches!(body, Body::SessionOpened(_)) {
                world.recorded.extend(session);
            }
        });
        Ok(1)
    }
    fn name_session(&self, _: u32, _: Uuid) {}
    async fn barrier(&self) -> Result<u64, String> {
        Ok(1)
    }
}

/// How a one-time code stands among the keys.
const CODE: &str = "a one-time code";

/// Whom the account is open for.
fn admitted(access: &Access) -> Vec<String> {
    access.keys.iter().cloned().chain(access.by_code.then(|| CODE.to_owned())).collect()
}

#[derive(Clone, Debug)]
enum Move {
    Open { who: u8, ttl_s: u64 },
    Code { ttl_s: u64 },
    ClockStep { seconds: i64 },
    Close,
    Wait { seconds: u64 },
    LogIn,
    LogOut,
    Crash { steps: u32 },
    Fail { calls: u32 },
    Kill,
    Reboot,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0..3u8, 5..120u64).prop_map(|(who, ttl_s)| Move::Open { who, ttl_s }),
        1 => (5..120u64).prop_map(|ttl_s| Move::Code { ttl_s }),
        1 => (-1_000_000_000..1_000_000_000i64).prop_map(|seconds| Move::ClockStep { seconds }),
        1 => Just(Move::Close),
        2 => (1..100u64).prop_map(|seconds| Move::Wait { seconds }),
        2 => Just(Move::LogIn),
        1 => Just(Move::LogOut),
        3 => (0..24u32).prop_map(|steps| Move::Crash { steps }),
        1 => (0..3u32).prop_map(|calls| Move::Fail { calls }),
        1 => Just(Move::Kill),
        1 => Just(Move::Reboot),
    ];
    proptest::collection::vec(one, 1..14)
}

/// What was proved, and what must hold because of it.
struct Oracle {
    world: Shared,
    manager: Manager<Hands, Hands>,
    /// Of the agent that the manager is.
    life: u32,
    /// Keys for which a proof was given that no lock has followed.
    proved: BTreeSet<String>,
    /// The latest deadline that any proof could have given the session; it has one, which moves for everybody.
    latest: u64,
    /// Keys that must get in, and until when.
    owed: BTreeMap<String, u64>,
}

impl Oracle {
    async fn new() -> Self {
        let world = World::new();
        let (manager, life) = start(&world).await;
        Self { world, manager, life, proved: BTreeSet::new(), latest: 0, owed: BTreeMap::new() }
    }

    async fn make(&mut self, one: &Move) {
        match one {
            Move::Open { who, ttl_s } => self.open(&format!("ssh-ed25519 KEY{who}"), *ttl_s).await,
            Move::Code { ttl_s } => self.open(CODE, *ttl_s).await,
            Move::ClockStep { seconds } => self.world.lock().unwrap().wall_s += seconds,
            Move::Close => {
                self.owed.clear();
                // Nothing is open now and then.
                let _ = self.manager.close(None, CloseCause::Operator, "alice").await;
                if self.alive() {
                    self.proved.clear();
                    self.latest = 0;
                }
            }
            Move::Wait { seconds } => tokio::time::sleep(Duration::from_secs(*seconds)).await,
            Move::LogIn => {
                let mut world = self.world.lock().unwrap();
                world.live += u32::from(world.open_for().is_some());
            }
            Move::LogOut => self.world.lock().unwrap().live = 0,
            Move::Crash { steps } => self.world.lock().unwrap().crash_in = Some(*steps),
            Move::Fail { calls } => self.world.lock().unwrap().fail_in = Some(*calls),
            Move::Kill => self.world.lock().unwrap().die(),
            Move::Reboot => self.reboot(),
        }
        // A moment for what goes on by itself.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.revive(one).await;
        self.holds(one);
    }

    /// Starts another agent if this one has died. What was open may be still, until then, within what was proved.
    async fn revive(&mut self, after: &Move) {
        if self.alive() {
            return;
        }
        self.owed.clear();
        self.holds(after);
        (self.manager, self.life) = start(&self.world).await;
        self.proved.clear();
    }

    async fn open(&mut self, key: &str, ttl_s: u64) {
        let key = key.to_owned();
        // Whatever becomes of it: an agent that dies meanwhile may have got that far. A call takes no time but a tick of the watch's.
        let bound = self.world.lock().unwrap().now() + (ttl_s + 1) * 1_000_000_000;
        self.proved.insert(key.clone());
        let earlier = self.latest;
        self.latest = earlier.max(bound);
        let by_code = key == CODE;
        let asked = Grant { key: (!by_code).then(|| key.clone()), by_code, ..grant(ttl_s) };
        let result = self.manager.open(asked).await;
        match result {
            Ok(opened) if self.alive() => {
                if !opened.extended {
                    self.owed.clear();
                    self.proved = BTreeSet::from([key.clone()]);
                    self.latest = bound;
                }
                self.owed.insert(key, opened.deadline_boot_ns);
                self.owed.values_mut().for_each(|deadline| *deadline = opened.deadline_boot_ns);
            }
            // Refused: the session, if there is one, is as it was.
            Err(_) if self.alive() => self.latest = earlier,
            _ => {}
        }
    }

    fn reboot(&mut self) {
        let mut world = self.world.lock().unwrap();
        world.die();
        world.boot += 1;
        world.booted = Instant::now();
        world.live = 0;
        // The runtime folder is memory.
        world.key = None;
        let _ = std::fs::remove_file(world.notes.join("run/session.json"));
        self.proved.clear();
        self.latest = 0;
    }

    fn alive(&self) -> bool {
        self.world.lock().unwrap().life == self.life
    }

    fn holds(&self, after: &Move) {
        let world = self.world.lock().unwrap();
        let now = world.now();
        if let Some(access) = world.open_for() {
            assert!(world.recorded.contains(&access.session), "open and not recorded, after {after:?}");
            for key in admitted(access) {
                assert!(self.proved.contains(&key), "{key} may log in without a proof, after {after:?}");
            }
            assert!(access.deadline_boot_ns <= self.latest, "open for longer than was proved, after {after:?}");
        }
        for (key, deadline) in self.owed.iter().filter(|(_, deadline)| **deadline > now) {
            let lets_in = world.open_for().is_some_and(|access| admitted(access).contains(key));
            assert!(lets_in, "{key} has a live grant until {deadline} and cannot log in, after {after:?}");
        }
        // The watch looks once a second.
        let over = self.owed.values().all(|deadline| deadline + 2_000_000_000 < now);
        if over && world.life == self.life && self.manager.view().state == "locked" {
            assert!(world.key.is_none() && !world.shadow_enabled, "over and not locked, after {after:?}");
        }
    }
}

/// Starts an agent as the daemon does: it locks first. One that dies while it starts is started again.
async fn start(world: &Shared) -> (Manager<Hands, Hands>, u32) {
    loop {
        let (life, notes) = {
            let world = world.lock().unwrap();
            (world.life, world.notes.clone())
        };
        let hands = Hands { world: Arc::clone(world), life };
        hands.lock().unwrap();
        let step = hands.clone();
        let intents = IntentStore::new(&notes.join("state"), &notes.join("run")).watched(move || step.step(|_| {}));
        let manager = Manager::new(Arc::new(hands.clone()), hands, intents);
        manager.recover().await;
        let world = world.lock().unwrap();
        if world.life == life {
            assert!(world.open_for().is_none(), "a start never opens");
            return (manager, life);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn never_open_without_a_live_grant_and_always_with_one(moves in moves()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut oracle = Oracle::new().await;
            for one in &moves {
                oracle.make(one).await;
            }
            // Whatever happened, in the end it is locked: nothing is granted for longer than this.
            oracle.world.lock().unwrap().crash_in = None;
            oracle.revive(&Move::Kill).await;
            tokio::time::sleep(Duration::from_secs(600)).await;
            let world = oracle.world.lock().unwrap();
            assert!(world.key.is_none() && !world.shadow_enabled && world.live == 0, "never locked: {moves:?}");
            assert_eq!(oracle.manager.view().state, "locked");
        });
    }
}
