//! A recording kernel for one test, and a reader that collects what it says.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use breakglass_agent::{
    kernel::{Belongings, Kernel, Options, Reader, STALE_AFTER},
    recorder::source::{EventSource, Observed},
};
use breakglass_api::v1::{self, event::Body};

/// How long anything may take to show up.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// What a read may return, bytes.
const READ_BYTES: usize = 1 << 20;

/// Why the tests cannot run here; `None` where they can.
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel shows no BTF".into());
    }
    let kind = nix::sys::statfs::statfs("/sys/fs/bpf").map(|fs| fs.filesystem_type());
    if kind != Ok(nix::sys::statfs::BPF_FS_MAGIC) {
        return Some("no bpffs at /sys/fs/bpf".into());
    }
    None
}

/// Ends the calling test early, saying why, where the kernel programs cannot be loaded.
#[macro_export]
macro_rules! need_kernel {
    () => {
        if let Some(why) = $crate::live::harness::obstacle() {
            eprintln!("skipped: {why}");
            return;
        }
    };
}

/// Whether this machine is emulated, by how long it takes to start a program: 1 ms on iron, 5 ms on busy iron, 30 ms and more
/// where it is.
pub fn is_emulated() -> bool {
    // QEMU's own processor says so. Others are found out by how long they take.
    if std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|about| about.contains("QEMU TCG")) {
        return true;
    }
    const TRIES: u32 = 20;
    let start = Instant::now();
    for _ in 0..TRIES {
        Command::new("/bin/true").status().expect("/bin/true");
    }
    start.elapsed() / TRIES > Duration::from_millis(20)
}

/// A uid that nobody has, different in every test and run.
pub fn free_uid() -> u32 {
    61_000 + rand::random_range(0..4_000)
}

/// A recording kernel of its own; unloaded when dropped.
pub struct Recording {
    pub uid: u32,
    pub options: Options,
    pub kernel: Option<Kernel>,
    pub reader: Option<Reader>,
    pub seen: Vec<Observed>,
}

impl Recording {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// With the guard, where the kernel has what it takes.
    pub fn guarded() -> Self {
        Self::guarded_with(|_| {})
    }

    pub fn guarded_with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Self::guarded_options();
        change(&mut options);
        Self::of(options)
    }

    pub fn guarded_options() -> Options {
        Options { maximum_tier: breakglass_agent::config::Tier::Full, ..Self::options() }
    }

    /// Pins and a uid of a recording's own. Without the guard, which records nothing, and whose dozens of programs each test in the lab
    /// would wait seconds for.
    pub fn options() -> Options {
        let pins =
            PathBuf::from(format!("/sys/fs/bpf/breakglass-test-{}-{:08x}", std::process::id(), rand::random::<u32>()));
        Options {
            pins,
            account_uid: free_uid(),
            audit_ring: 16 << 20,
            witness_ring: 64 << 10,
            bulk_ring: 16 << 20,
            tag_table: breakglass_agent::kernel::TAG_TABLE,
            deny_unrecorded: true,
            maximum_tier: breakglass_agent::config::Tier::Trace,
            kill_ungranted: false,
            allow_uring: true,
            stale_after: STALE_AFTER,
            belongings: Belongings::default(),
            build: None,
        }
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Self::options();
        change(&mut options);
        Self::of(options)
    }

    /// Loads the programs, or takes over those that are there.
    pub fn of(options: Options) -> Self {
        let (kernel, reader) = Kernel::start(&options).expect("start");
        Self { uid: options.account_uid, options, kernel: Some(kernel), reader: Some(reader), seen: Vec::new() }
    }

    pub fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("a running kernel")
    }

    /// A command that runs as the account.
    pub fn command(&self, program: &str) -> Command {
        command_as(self.uid, program)
    }

    /// Reads until `done` says so of everything seen; fails the test at the deadline.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&[Observed]) -> bool) {
        let limit = Instant::now() + DEADLINE;
        while !done(&self.seen) {
            assert!(Instant::now() < limit, "{what} did not come; seen: {}", self.summary());
            self.pump(Duration::from_millis(50));
        }
    }

    /// One round of what the recorder does.
    pub fn pump(&mut self, timeout: Duration) {
        let reader = self.reader.as_mut().expect("a reader");
        reader.wait(timeout).expect("wait");
        reader.read(&mut self.seen, READ_BYTES).expect("read");
        reader.release();
    }

    /// Reads what is there, all of it. What a program did before it ended is on the rings by then.
    pub fn drain(&mut self) {
        let limit = Instant::now() + DEADLINE;
        let mut before = usize::MAX;
        while before != self.seen.len() {
            assert!(Instant::now() < limit, "the rings do not become empty");
            before = self.seen.len();
            self.pump(Duration::from_millis(10));
        }
    }

    /// As [`Self::drain`], and lets two rounds of the gap proof pass.
    pub fn settle(&mut self) {
        self.drain();
        for _ in 0..6 {
            self.pump(Duration::from_millis(60));
        }
    }

    /// What is missing of the session. Others of this machine may overrun the witness ring while a test does not read.
    pub fn gaps(&self) -> Vec<&v1::Gap> {
        self.all_gaps().into_iter().filter(|gap| gap.ring() != v1::Ring::Witness).collect()
    }

    pub fn all_gaps(&self) -> Vec<&v1::Gap> {
        self.seen
            .iter()
            .filter_map(|observed| match &observed.event.body {
                Some(Body::Gap(gap)) => Some(gap),
                _ => None,
            })
            .collect()
    }

    /// The same pins, as a new agent finds them; the old one is gone without having said goodbye.
    pub fn restart(&mut self) {
        let position = self.reader.as_ref().map(|reader| reader.position());
        self.reader = None;
        self.kernel = None;
        let (kernel, mut reader) = Kernel::start(&self.options).expect("start again");
        if let Some(position) = position {
            reader.resume(&position).expect("resume");
        }
        self.kernel = Some(kernel);
        self.reader = Some(reader);
    }

    /// What terminals showed, put together.
    pub fn output(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for observed in &self.seen {
            if let Some(Body::TerminalOutput(output)) = &observed.event.body {
                assert_eq!(output.missing, 0);
                all.extend_from_slice(&output.data);
            }
        }
        all
    }

    /// What was typed, put together, and how many bytes were withheld.
    pub fn input(&self) -> (Vec<u8>, u64) {
        let (mut typed, mut withheld) = (Vec::new(), 0);
        for observed in &self.seen {
            match &observed.event.body {
                Some(Body::TerminalInput(input)) => typed.extend_from_slice(&input.data),
                Some(Body::InputWithheld(input)) => withheld += input.bytes,
                _ => {}
            }
        }
        (typed, withheld)
    }

    /// Kernel records that the events were made of, and those that gaps name.
    pub fn accounted(&self) -> u64 {
        let of_events: u64 = self
            .seen
            .iter()
            .filter_map(|observed| observed.event.origin)
            .map(|origin| 1 + u64::from(origin.more))
            .sum();
        of_events + self.all_gaps().iter().map(|gap| gap.records).sum::<u64>()
    }

    /// Waits for the end of a process.
    pub fn until_exit_of(&mut self, pid: u32) -> v1::Exit {
        self.until("the exit", |seen| exit_of(seen, pid).is_some());
        *exit_of(&self.seen, pid).expect("just seen")
    }

    fn summary(&self) -> String {
        let mut lines: Vec<String> =
            self.seen.iter().rev().take(20).map(|o| format!("{:.300}", format!("{:?}", o.event.body))).collect();
        lines.reverse();
        format!("{} events, the last: {}", self.seen.len(), lines.join("\n"))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.reader = None;
        if let Some(kernel) = self.kernel.take() {
            kernel.unload().expect("unload");
        }
        let _ = std::fs::remove_dir(&self.options.pins);
    }
}

/// A command that runs as somebody.
pub fn command_as(uid: u32, program: &str) -> Command {
    let mut command = Command::new(program);
    command.uid(uid).gid(uid).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command
}

/// Programs in scope.
pub fn execs(seen: &[Observed]) -> Vec<&v1::Exec> {
    let audited = |observed: &&Observed| observed.event.origin.is_some_and(|origin| origin.ring() == v1::Ring::Audit);
    seen.iter().filter(audited).filter_map(exec_in).collect()
}

fn exec_in(observed: &Observed) -> Option<&v1::Exec> {
    match &observed.event.body {
        Some(Body::Exec(exec)) => Some(exec),
        _ => None,
    }
}

pub fn exit_of(seen: &[Observed], pid: u32) -> Option<&v1::Exit> {
    seen.iter().find_map(|observed| match &observed.event.body {
        Some(Body::Exit(exit)) if exit.process.is_some_and(|process| process.pid == pid) => Some(exit),
        _ => None,
    })
}

/// The program of a process, in scope or not.
pub fn exec_of(seen: &[Observed], pid: u32) -> Option<&v1::Exec> {
    seen.iter().filter_map(exec_in).find(|exec| exec.process.is_some_and(|process| process.pid == pid))
}
