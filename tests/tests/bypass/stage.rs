//! The one installation that every attack is made against, and how an attack is made and judged.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use breakglass_api::v1::RecordedEvent;
use breakglass_tests::{
    account::PROMPT_SHOWN,
    daemon::noted,
    machine,
    operator::Opened,
    poll,
    query::Query,
    stack::{Options, Stack, pins},
    terminal::Terminal,
};
use nix::sys::signal::Signal;

use crate::{
    case::{Case, Held, Outcome, Way},
    catalogue::Catalogue,
    mend, peers,
    record::Record,
    shell::Shell,
    verdict::{self, Verdict},
};

/// How long one attack may take; the slowest moves megabytes under emulation.
const LIMIT: Duration = Duration::from_secs(90);

/// How long the collector may take to have what was recorded, here and under emulation.
const ARRIVAL: Duration = Duration::from_secs(6);
const ARRIVAL_IN_LAB: Duration = Duration::from_secs(60);

/// After the end of an attack is on record, what belongs before it is too; events that the agent adds come within a round.
const GRACE: Duration = Duration::from_millis(1500);
const GRACE_IN_LAB: Duration = Duration::from_secs(10);

/// A signal that ends a process takes effect within that.
const SETTLE: Duration = Duration::from_millis(300);

/// Room for the agent's state, so that a full disk is soon reached and is nobody else's.
const STATE_DISK: &str = "48m";

/// Bytes of a flood of output, here and under emulation, where encrypting it takes longest.
const FLOOD: usize = 12_000_000;
const FLOOD_IN_LAB: usize = 2_000_000;

/// How much of what a client saw goes into a message, bytes.
const TOLD: usize = 400;

/// Alerts that go into a verdict.
const ALERTS_KEPT: usize = 12;

/// Pause between two looks at the collector.
const PAUSE: Duration = Duration::from_millis(50);

/// A session that lasts as long as the suite.
const TTL: &str = "1h";

/// What scripts have: `act` does what is to be hidden, `appears` waits until somebody else has, `gone` tells whether the agent is. Only who
/// was not refused what would make the other act waits for it: the wait takes a minute where nothing comes.
const PRELUDE: &str = r#"
act() { "$attack" act "$file" "$mark"; }
gone() { ! grep -q '^State:[[:space:]]*[^ZX]' "/proc/$agent/status" 2>/dev/null; }
appears() { i=0; until [ -e "$file" ] || [ $i -gt 300 ]; do sleep 0.1; i=$((i + 1)); done; }
"#;

const TOOL: &str = include_str!("attack.c");
const SMALL: &str = include_str!("small32.S");

static STAGE: Mutex<Option<Stage>> = Mutex::new(None);

/// An installation with an open session and a shared ssh connection into it.
pub struct Stage {
    pub stack: Stack,
    pub opened: Opened,
    /// Where the attacks lie and leave their marks.
    pub folder: PathBuf,
    query: Query,
    host: String,
    master: Option<Child>,
    /// Where scripts that need no login of their own are run.
    shell: Option<Shell>,
    /// A process of the host that has nothing to do with the session.
    bystander: Child,
    events: Vec<RecordedEvent>,
    frame: u64,
    /// What tells events apart: frame, place in it, wall and boot time.
    known: HashSet<(u64, u32, i64, Option<u64>)>,
    catalogue: Catalogue,
    kernel: String,
    /// Numbers the attacks.
    count: u32,
}

/// An attack that was made.
pub struct Deed {
    /// What tells it from all others.
    pub mark: String,
    /// The file that its program makes.
    pub file: PathBuf,
    /// What the client saw.
    pub seen: Vec<u8>,
    /// What it complained of.
    pub complaint: String,
    /// Events from here on belong to it.
    pub from: usize,
    /// Whether a program of the session marks its end on record.
    pub ended: bool,
    /// A value of the attack's own.
    pub value: u64,
}

impl Deed {
    /// Its program ran.
    pub fn acted(&self) -> bool {
        self.file.exists()
    }

    /// What its program wrote.
    pub fn written(&self) -> String {
        fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// The end of what the client saw and complained of.
    fn told(&self) -> String {
        let end = |bytes: &[u8]| bytes[bytes.len().saturating_sub(TOLD)..].escape_ascii().to_string();
        format!("the client saw \"{}\" and said \"{}\"", end(&self.seen), end(self.complaint.as_bytes()))
    }

    /// The client saw that.
    pub fn saw(&self, text: &str) -> bool {
        breakglass_tests::terminal::find(&self.seen, text.as_bytes()).is_some()
    }
}

/// Whether this is a guest of the lab.
pub fn in_lab() -> bool {
    std::env::var_os("BREAKGLASS_LAB_KERNEL").is_some()
}

/// Makes one attack, judges it, and fails where it comes out worse than promised.
pub fn attack(case: &Case) -> Result<Option<String>> {
    let mut place = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stage = match place.take() {
        Some(stage) => stage,
        None => {
            verdict::begin()?;
            Stage::start()?
        }
    };
    let result = stage.ready().and_then(|()| stage.attack(case));
    if let Err(error) = &result {
        verdict::tell(&case.full_name(), &format!("{error:#}"))?;
    }
    let result = result.map_err(|error| error.context(stage.stack.agent.tail()));
    *place = Some(stage);
    result
}

impl Stage {
    /// Takes the installation back.
    pub fn leave() {
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut stage) = stage {
            // Noted in the run's list of what to take back as well.
            let _ = stage.bystander.kill();
            let _ = stage.bystander.wait();
            stage.hang_up();
        }
    }

    fn start() -> Result<Self> {
        let agent_under: &[&str] = if in_lab() { UNIT } else { &[] };
        let options = Options {
            sudo_freely: true,
            max_ttl: TTL.into(),
            walk: in_lab(),
            state_disk: Some(STATE_DISK),
            // Where nothing refuses it, it is frozen for real (row 62).
            state_in_file: mend::is_trace(),
            agent_under,
            ..Options::default()
        };
        let stack = Stack::start(options)?;
        let folder = stack.run.make("attacks", 0o755)?;
        let marks = stack.run.make("attacks/marks", 0o777)?;
        fs::set_permissions(marks, fs::Permissions::from_mode(0o777))?;
        fs::write(folder.join("attack.c"), TOOL)?;
        fs::write(folder.join("small32.S"), SMALL)?;
        let cc = |arguments: &[&str]| machine::run(Command::new("gcc").current_dir(&folder).args(arguments));
        cc(&["-O1", "-pthread", "-o", "attack", "attack.c", "-ldl"])?;
        cc(&["-m32", "-nostdlib", "-static", "-o", "small32", "small32.S"])?;
        let opened = stack.open("every way around", TTL)?;
        let mut query = stack.query()?;
        let host = poll::until("the collector to know the host", poll::EVENTUALLY, || Ok(query.hosts()?.pop()))?.id;
        let catalogue = Catalogue::ask(&stack.binaries)?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let bystander = bystander(&stack)?;
        let (events, frame, count) = (Vec::new(), 0, 0);
        Ok(Self {
            stack,
            opened,
            folder,
            query,
            host,
            master: None,
            shell: None,
            bystander,
            events,
            frame,
            known: HashSet::new(),
            catalogue,
            kernel,
            count,
        })
    }

    /// Mends what the attack before has broken: agent, session, connection.
    pub fn ready(&mut self) -> Result<()> {
        mend::machine()?;
        if self.stack.agent.check().is_err() {
            self.stack.start_agent()?;
        }
        if self.stack.status().is_err() && self.stack.wait_until_ready().is_err() {
            // It may have ended meanwhile.
            let _ = self.stack.agent.kill();
            self.stack.start_agent()?;
        }
        if self.bystander.try_wait()?.is_some() {
            self.bystander = bystander(&self.stack)?;
        }
        if self.stack.status()?.state != "open" {
            self.hang_up();
            self.opened = self.open_again()?;
        }
        let alive = match &mut self.master {
            Some(master) => master.try_wait()?.is_none(),
            None => false,
        };
        if !alive {
            self.hang_up();
            self.connect()?;
        }
        Ok(())
    }

    /// Does for the agent what systemd and time would do.
    fn revive(&mut self) -> Result<()> {
        mend::machine()?;
        if let Some(cgroup) = cgroup_of(self.stack.agent.pid()) {
            // Not frozen, or not to be written: then there is nothing to thaw.
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
        }
        if self.stack.agent.check().is_ok() {
            // It may end between the two; then it is started by the next look.
            let _ = self.stack.agent.signal(Signal::SIGCONT);
            thread::sleep(SETTLE);
        }
        if self.stack.agent.check().is_ok() {
            let ready = self.stack.wait_until_ready();
            // On a busy machine a process that was killed takes its time to end.
            if ready.is_ok() || self.stack.agent.check().is_ok() {
                return ready;
            }
        }
        self.stack.start_agent()?;
        self.stack.wait_until_ready()
    }

    /// Opens once more. An agent that was asked to end lets nobody in while it does; then it is the next one's turn.
    fn open_again(&mut self) -> Result<Opened> {
        let opened = self.stack.open("every way around, again", TTL);
        let ends = |stage: &mut Self| {
            poll::until_true("the agent to end", poll::SOON, || Ok(stage.stack.agent.check().is_err())).is_ok()
        };
        if opened.is_ok() || !ends(self) {
            return opened;
        }
        self.stack.start_agent()?;
        self.stack.open("every way around, once more", TTL)
    }

    fn socket(&self) -> PathBuf {
        self.stack.path("operator/shared")
    }

    fn connect(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let _ = fs::remove_file(self.socket());
            let complaints = self.stack.path("operator/shared.log");
            let mut command = self.ssh(&["-M", "-N"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&complaints)?);
            let mut master = noted(&self.stack.run, command.spawn()?)?;
            let up = poll::until("the shared connection", poll::EVENTUALLY, || {
                Ok(if self.socket().exists() { Some(true) } else { master.try_wait()?.map(|_| false) })
            });
            if matches!(up, Ok(true)) {
                self.master = Some(master);
                return Ok(());
            }
            let _ = master.kill();
            master.wait()?;
            let complaint = fs::read_to_string(&complaints).unwrap_or_default();
            ensure!(start.elapsed() < poll::EVENTUALLY, "no login into the session: {complaint}");
            thread::sleep(SETTLE);
        }
    }

    /// Ends the shared connection.
    pub fn hang_up(&mut self) {
        self.shell = None;
        if let Some(mut master) = self.master.take() {
            // Ended already, then these fail.
            let _ = master.kill();
            let _ = master.wait();
        }
    }

    /// ssh through the shared connection, with options before the host.
    pub fn ssh(&self, options: &[&str]) -> Command {
        let plain = self.stack.ssh(&self.opened);
        let mut command = Command::new(plain.get_program());
        command.args(options).arg("-S").arg(self.socket()).args(plain.get_args());
        command.env_remove("SSH_AUTH_SOCK").env("TERM", "xterm");
        command
    }

    /// Gives why it was not made, where it was not.
    fn attack(&mut self, case: &Case) -> Result<Option<String>> {
        let tier = self.stack.status()?.tier;
        let Some(promise) = self.catalogue.promise(case.row, &tier)? else {
            return Ok(Some(format!("does not apply in tier {tier}")));
        };
        let start = Instant::now();
        let deed = match case.way {
            Way::Own(make) => make(self, case)?,
            _ => self.make(case)?,
        };
        if case.rough {
            self.revive()?;
        }
        let outcome = self.judge(case, &deed)?;
        let told = self.record(&deed).alerts().map(|alert| format!("{}: {}", alert.code, alert.message));
        let alerts = told.take(ALERTS_KEPT).collect::<BTreeSet<_>>();
        let seconds = start.elapsed().as_secs_f32();
        let peers = if case.peers && peers::here() { peers::try_all(self, case)? } else { peers::Findings::default() };
        verdict::keep(&Verdict {
            row: case.row,
            case: case.name,
            kernel: &self.kernel,
            tier: &tier,
            outcome,
            alerts: &alerts,
            seconds,
            auditd: peers.auditd,
            tlog: peers.tlog,
            script: peers.script,
        })?;
        ensure!(outcome >= promise, "{outcome}, and {promise} is promised for tier {tier}; {}", deed.told());
        Ok(None)
    }

    /// A deed before it is done.
    pub fn prepare(&mut self, case: &Case) -> Result<Deed> {
        self.count += 1;
        self.refresh()?;
        let mark = format!("m{}r{}{}x", self.count, case.row, case.name.replace(|c: char| !c.is_alphanumeric(), ""));
        let file = self.folder.join("marks").join(&mark);
        let from = self.events.len();
        Ok(Deed { mark, file, seen: Vec::new(), complaint: String::new(), from, ended: false, value: 0 })
    }

    fn make(&mut self, case: &Case) -> Result<Deed> {
        let mut deed = self.prepare(case)?;
        match case.way {
            Way::Root(script) => self.run(&mut deed, script)?,
            Way::Terminal(script) => self.run_alone(&mut deed, script, "sudo -n ", &["-tt"])?,
            Way::Operator(script) => self.run_alone(&mut deed, script, "", &[])?,
            Way::Typed(lines) => self.type_lines(&mut deed, lines)?,
            Way::Own(_) => bail!("{} is made in its own way", case.full_name()),
        }
        Ok(deed)
    }

    /// Variables of every script, as lines of it.
    pub fn variables(&self, deed: &Deed) -> Vec<(&'static str, String)> {
        let folder = self.folder.display().to_string();
        vec![
            ("mark", deed.mark.clone()),
            ("file", deed.file.display().to_string()),
            ("dir", folder.clone()),
            ("attack", format!("{folder}/attack")),
            ("account", self.stack.account.name.clone()),
            ("agent", self.stack.agent.pid().to_string()),
            ("bystander", self.bystander.id().to_string()),
            ("pins", pins(&self.stack.run).display().to_string()),
            ("state", self.stack.path("state").display().to_string()),
            ("config", self.stack.path("agent.toml").display().to_string()),
            ("program", self.stack.binaries.agent.display().to_string()),
            ("key", self.stack.key().display().to_string()),
            ("flood", (if in_lab() { FLOOD_IN_LAB } else { FLOOD }).to_string()),
            ("port", self.opened.ssh_port.to_string()),
        ]
    }

    /// Writes a script to a file; its name says nothing of the mark.
    pub fn script(&self, deed: &Deed, script: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("script-{}", self.count));
        let mut text = String::new();
        for (name, value) in self.variables(deed) {
            text.push_str(&format!("{name}='{value}'\n"));
        }
        text.push_str(PRELUDE);
        text.push_str(script);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Runs a script as root on the far side, in the login that all such scripts share, and marks its end there.
    pub fn run(&mut self, deed: &mut Deed, script: &str) -> Result<()> {
        let path = self.script(deed, script)?;
        // One a script: a container's runtime gives its standard error to the container's root for good.
        let complaints = self.folder.join(format!("marks/complaints-{}", self.count));
        let mut shell = match self.shell.take() {
            Some(shell) => shell,
            None => Shell::start(&self.stack.run, &mut self.ssh(&[]))?,
        };
        match shell.run(deed, &path, &complaints, LIMIT) {
            Ok(()) => {
                self.shell = Some(shell);
                deed.ended = true;
            }
            // The attack may have taken its own session along; what there is of it is judged all the same.
            Err(error) => deed.complaint.push_str(&format!("{error:#}")),
        }
        Ok(())
    }

    /// Runs a script in a login of its own, after `prefix`.
    pub fn run_alone(&mut self, deed: &mut Deed, script: &str, prefix: &str, options: &[&str]) -> Result<()> {
        let path = self.script(deed, script)?;
        let line = format!("{prefix}/bin/sh {}; /bin/true end-{}", path.display(), deed.mark);
        let mut command = self.ssh(options);
        let output = finish(command.arg(line).stdin(Stdio::null()))?;
        deed.seen = output.stdout;
        deed.complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        deed.ended = true;
        Ok(())
    }

    /// A login shell at a terminal of its own.
    pub fn login(&self) -> Result<Terminal> {
        let mut terminal = Terminal::start_piped(&self.stack.run, &mut self.ssh(&["-tt"]))?;
        terminal.expect_within(PROMPT_SHOWN, LIMIT)?;
        Ok(terminal)
    }

    fn type_lines(&mut self, deed: &mut Deed, lines: &[&str]) -> Result<()> {
        let mut terminal = self.login()?;
        for line in lines {
            let mut line = (*line).to_owned();
            for (name, value) in self.variables(deed) {
                line = line.replace(&format!("{{{name}}}"), &value);
            }
            terminal.send(format!("{line}\n"))?;
            terminal.expect_within(PROMPT_SHOWN, LIMIT)?;
        }
        terminal.send(format!("/bin/true end-{}; exit\n", deed.mark))?;
        terminal.finish(LIMIT)?;
        deed.seen = terminal.seen();
        deed.ended = true;
        Ok(())
    }

    /// Fetches what the collector has meanwhile.
    pub fn refresh(&mut self) -> Result<()> {
        let more = self.query.host_events_after(&self.host, self.frame)?;
        self.frame = more.iter().map(|recorded| recorded.frame).fold(self.frame, u64::max);
        // A spool that was damaged begins a new stream, whose frames count from 1 again.
        self.events.extend(more.into_iter().filter(|recorded| {
            let boot_ns = recorded.event.as_ref().map(|event| event.boot_ns);
            self.known.insert((recorded.frame, recorded.index, recorded.wall_ns, boot_ns))
        }));
        Ok(())
    }

    /// What is on record from a deed on.
    pub fn record(&self, deed: &Deed) -> Record<'_> {
        Record { events: &self.events[deed.from..], session: &self.opened.session }
    }

    /// What came of a deed: waits as long as something may still arrive.
    fn judge(&mut self, case: &Case, deed: &Deed) -> Result<Outcome> {
        let done = (case.done)(deed);
        let start = Instant::now();
        let (arrival, grace) = if in_lab() { (ARRIVAL_IN_LAB, GRACE_IN_LAB) } else { (ARRIVAL, GRACE) };
        let mut ended_at = None;
        loop {
            self.refresh()?;
            let record = self.record(deed);
            if done {
                match (case.held)(&record, deed) {
                    Some(Held::Whole) => return Ok(Outcome::Recorded),
                    Some(Held::Less) => return Ok(Outcome::Reported),
                    Some(Held::Refused | Held::TurnedAway) => return Ok(Outcome::Refused),
                    None => {}
                }
            } else if record.refused()
                || record.ended_with_agent()
                || case.helper.is_some_and(|helper| record.refused_to(helper))
            {
                return Ok(Outcome::Refused);
            }
            if ended_at.is_none() && deed.ended && record.ran(&format!("end-{}", deed.mark)) {
                ended_at = Some(Instant::now());
            }
            let over = ended_at.is_some_and(|at| at.elapsed() > grace) || start.elapsed() > arrival;
            match (over, done) {
                (true, true) => return Ok(Outcome::Open),
                (true, false) => {
                    bail!("nothing happened and nobody was alerted, so the attack is broken; {}", deed.told())
                }
                (false, _) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Runs a command to its end, which it must reach in time.
pub fn finish(command: &mut Command) -> Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let id = child.id();
    let (sender, done) = std::sync::mpsc::channel();
    let streams = (child.stdout.take(), child.stderr.take());
    thread::spawn(move || {
        let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // What was read until an error is what there is.
                let _ = stream.read_to_end(&mut bytes);
            }
            bytes
        };
        let (out, err) = streams;
        let errors = thread::spawn(move || read(err.map(|e| Box::new(e) as _)));
        let output = read(out.map(|o| Box::new(o) as _));
        let _ = sender.send((output, errors.join().unwrap_or_default()));
    });
    let Ok((stdout, stderr)) = done.recv_timeout(LIMIT) else {
        child.kill()?;
        child.wait()?;
        bail!("process {id} was not done after {LIMIT:?}: {command:?}");
    };
    Ok(Output { status: child.wait().context("cannot wait for it")?, stdout, stderr })
}

fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (path.trim() != "/").then(|| PathBuf::from("/sys/fs/cgroup").join(path.trim().trim_start_matches('/')))
}

/// Gives the agent a unit of its own. Somebody stays in it, as systemd's own interest in a service's main process would keep it: an attack
/// may move the agent out, and a scope is gone with its last process.
const UNIT: &[&str] = &[
    "systemd-run",
    "--scope",
    "--quiet",
    "--collect",
    // How long systemd waits for an agent that it may not stop.
    "--property=TimeoutStopSec=5",
    "sh",
    "-c",
    "sleep 100000 & exec \"$0\" \"$@\"",
];

/// Something of the host's that an attack may try to use: asleep, and in nobody's session.
fn bystander(stack: &Stack) -> Result<Child> {
    noted(&stack.run, Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn()?)
}
