//! What a run leaves on the machine, and how it is taken back.
//!
//! A run owns one folder below [`ROOT`] whose name begins with [`PREFIX`]. Before it makes anything outside of that folder (a
//! process, an account, a file in `/etc`, a mount, pinned kernel programs), it appends a line to the folder's `undo` file that
//! says how to remove it; a process is noted as soon as it exists. The lines are carried out backwards
//!
//! - when the [`Run`] is dropped,
//! - when the process gets SIGINT, SIGTERM or SIGHUP,
//! - by [`sweep`], after a crash: a run holds a lock on its `undo` file, and a folder whose lock is free has lost its owner.
//!
//! Only what is written down is touched, and a process only while its start time is the one that was noted.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{machine, poll};

/// Where runs keep their folders. Every parent belongs to root and is closed to others, as sshd demands of a key helper.
pub const ROOT: &str = "/var/lib/breakglass-tests";

/// How the names of folders, accounts and files made by runs begin.
pub const PREFIX: &str = "bgt-";

/// How long a process may take to end after SIGTERM before SIGKILL. The agent kills a session's processes within a second.
const POLITE: Duration = Duration::from_secs(4);

/// How often a busy `useradd` or `userdel` is tried: other runs hold the password file's lock for milliseconds.
const BUSY_TRIES: u32 = 40;

/// Something to take back.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub enum Entry {
    /// A process, told apart from later ones with its number by its start time in clock ticks.
    Process {
        /// Its number.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`.
        start: u64,
    },
    /// A local account, with every process that runs as it or came from its login.
    Account(String),
    /// A file, or a folder with all that is in it.
    Path(PathBuf),
    /// A mount.
    Mount(PathBuf),
    /// The kernel's audit, off and without rules before.
    Audit,
}

/// How long a step that was written down already may take to come true; `useradd` is the slowest.
const IN_FLIGHT: Duration = Duration::from_millis(300);

/// How many runs are being taken back because they were dropped; a signal waits for them.
static UNDOING: AtomicUsize = AtomicUsize::new(0);

/// Set before anything is taken back because of a signal.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A run's folder and the list of what else it made.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    undo: Mutex<Flock<File>>,
}

/// Folders of the runs of this process; whoever takes one out carries its list out.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Run {
    /// Makes a folder of its own (0755: a key helper must be reachable for sshd) and sees to it that signals undo it.
    pub fn begin() -> Result<Self> {
        watch_signals()?;
        let folder = Path::new(ROOT).join(format!("{PREFIX}{}", random_name()?));
        make_folder(Path::new(ROOT), 0o755)?;
        make_folder(&folder, 0o755)?;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join("undo"))?;
        let undo = lock(file).context("a new undo file is locked already")?;
        live().push(folder.clone());
        Ok(Self { folder, undo: Mutex::new(undo) })
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder's name: unique on this machine, fit for an account or a file in `/etc`.
    pub fn name(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap_or(PREFIX)
    }

    /// Writes down how to take something back.
    ///
    /// Fails once everything is being taken back because of a signal, so that nothing new is made then.
    pub fn note(&self, entry: Entry) -> Result<()> {
        ensure!(!interrupted(), "interrupted");
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let mut undo = self.undo.lock().unwrap_or_else(PoisonError::into_inner);
        undo.write_all(&line).and_then(|()| undo.sync_data()).context("cannot write to the undo file")
    }

    /// Makes a folder inside the run's folder.
    pub fn make(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.folder.join(name);
        make_folder(&path, mode)?;
        Ok(path)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        UNDOING.fetch_add(1, Ordering::SeqCst);
        if claim(&self.folder) {
            report(&self.folder, undo(&self.folder));
        }
        UNDOING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Undoes what runs of processes that are gone left behind; returns how many there were.
pub fn sweep() -> Result<usize> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| format!("cannot read {ROOT}")),
    };
    let mut swept = 0;
    for entry in entries {
        let folder = entry?.path();
        let ours = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !ours || live().contains(&folder) {
            continue;
        }
        let Ok(file) = File::open(folder.join("undo")) else { continue };
        // Held until the folder is gone, so that two sweeps do not meet in one folder.
        let Ok(_owner) = lock(file) else { continue };
        report(&folder, undo(&folder));
        swept += 1;
    }
    Ok(swept)
}

/// Runs an account tool such as `useradd`, again while another holds the lock of the password file.
pub fn account_tool(program: &str, arguments: &[&str]) -> Result<()> {
    for attempt in 1..=BUSY_TRIES {
        let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // Exit status 1 of the shadow tools: cannot lock or update the password file.
        if output.status.code() != Some(1) || attempt == BUSY_TRIES {
            bail!("{program} {} failed: {message}", arguments.join(" "));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether a signal has asked this process to end.
fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// To be called before a program that may have begun a [`Run`] ends: after a signal it does not return, because the thread that takes
/// everything back ends the process when it is done, and what failed meanwhile failed because of it.
pub fn stay_if_interrupted() {
    while interrupted() {
        thread::park();
    }
}

/// Carries out a folder's list and removes it.
fn undo(folder: &Path) -> Vec<String> {
    let mut problems = carry_out(folder);
    // Left standing where something failed, so that the next sweep tries again.
    if problems.is_empty()
        && let Err(error) = fs::remove_dir_all(folder)
    {
        problems.push(format!("cannot remove it: {error}"));
    }
    problems
}

fn carry_out(folder: &Path) -> Vec<String> {
    let text = match fs::read_to_string(folder.join("undo")) {
        Ok(text) => text,
        Err(error) => return vec![format!("cannot read the undo file: {error}")],
    };
    // A line that was cut by a crash names something that was not made yet.
    let entries = text.lines().rev().filter_map(|line| serde_json::from_str::<Entry>(line).ok());
    entries.filter_map(|entry| take_back(&entry).err().map(|error| format!("{entry:?}: {error:#}"))).collect()
}

fn take_back(entry: &Entry) -> Result<()> {
    match entry {
        Entry::Process { pid, start } => end_process(*pid, *start),
        Entry::Account(name) => remove_account(name),
        Entry::Path(path) => remove_path(path),
        Entry::Mount(path) => match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        },
        Entry::Audit => {
            machine::run(Command::new("auditctl").args(["-e", "0"]))?;
            machine::run(Command::new("auditctl").arg("-D")).map(drop)
        }
    }
}

/// Ends a process that this run started, first politely.
pub fn end_process(pid: i32, start: u64) -> Result<()> {
    let alive = || machine::start_of(pid) == Some(start);
    for (signal, limit) in [(Signal::SIGTERM, POLITE), (Signal::SIGKILL, poll::SOON)] {
        if !alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if poll::until_true("the process to end", limit, || Ok(!alive())).is_ok() {
            return Ok(());
        }
    }
    bail!("process {pid} does not end")
}

fn remove_account(name: &str) -> Result<()> {
    let Some(user) = nix::unistd::User::from_name(name)? else { return Ok(()) };
    for process in machine::processes_of(user.uid.as_raw()) {
        // A process that ended by itself meanwhile is what was wanted.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    poll::until_true("the account's processes to end", poll::SOON, || {
        Ok(machine::processes_of(user.uid.as_raw()).is_empty())
    })?;
    account_tool("userdel", &[name])?;
    for left in
        [format!("/run/sudo/ts/{name}"), format!("/run/sudo/ts/{}", user.uid), format!("/var/lib/sudo/lectured/{name}")]
    {
        remove_path(Path::new(&left))?;
    }
    Ok(())
}

fn remove_path(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn report(folder: &Path, problems: Vec<String>) {
    for problem in problems {
        eprintln!("clean-up of {}: {problem}", folder.display());
    }
}

/// Makes a folder, if it is not there, with exactly this mode whatever the umask is.
fn make_folder(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make {}", path.display()))
}

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the folder was still this process's to undo; it is not afterwards.
fn claim(folder: &Path) -> bool {
    let mut live = live();
    let before = live.len();
    live.retain(|known| known != folder);
    live.len() < before
}

fn lock(file: File) -> Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

fn random_name() -> Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}

/// Starts, once, the thread that undoes everything when the process is told to end.
fn watch_signals() -> Result<()> {
    static WATCH: OnceLock<Result<(), String>> = OnceLock::new();
    WATCH
        .get_or_init(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
            thread::Builder::new()
                .name("signals".into())
                .spawn(move || match runtime.block_on(next_signal()) {
                    Ok(number) => {
                        undo_all();
                        std::process::exit(128 + number);
                    }
                    Err(error) => eprintln!("cannot watch for signals, an interrupted run must be swept: {error}"),
                })
                .map(drop)
                .map_err(|e| e.to_string())
        })
        .clone()
        .map_err(|error| anyhow::anyhow!("cannot watch for signals: {error}"))
}

async fn next_signal() -> std::io::Result<i32> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    Ok(tokio::select! {
        _ = interrupt.recv() => Signal::SIGINT as i32,
        _ = terminate.recv() => Signal::SIGTERM as i32,
        _ = hangup.recv() => Signal::SIGHUP as i32,
    })
}

fn undo_all() {
    INTERRUPTED.store(true, Ordering::SeqCst);
    eprintln!("\ninterrupted; taking everything back");
    let folders: Vec<PathBuf> = live().drain(..).collect();
    // Twice: another thread may be making what it has already written down.
    for folder in &folders {
        carry_out(folder);
    }
    thread::sleep(IN_FLIGHT);
    for folder in &folders {
        report(folder, undo(folder));
    }
    let dropped =
        poll::until_true("runs that were ending anyway", poll::EVENTUALLY, || Ok(UNDOING.load(Ordering::SeqCst) == 0));
    if let Err(error) = dropped {
        eprintln!("{error:#}; the next run takes back what is left");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_file() {
        for entry in [
            Entry::Process { pid: 7, start: 9 },
            Entry::Account("bgt-x".into()),
            Entry::Path("/etc/sudoers.d/bgt-x".into()),
            Entry::Mount("/var/lib/x".into()),
            Entry::Audit,
        ] {
            let line = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry);
        }
    }

    #[test]
    fn what_is_gone_already_is_no_problem() {
        take_back(&Entry::Path("/nonexistent/file".into())).unwrap();
        take_back(&Entry::Account("bgt-nobody".into())).unwrap();
        take_back(&Entry::Process { pid: i32::MAX, start: 1 }).unwrap();
    }

    #[test]
    fn a_number_that_was_used_again_is_left_alone() {
        let own = std::process::id() as i32;
        let start = machine::start_of(own).unwrap();
        end_process(own, start + 1).unwrap();
    }
}
