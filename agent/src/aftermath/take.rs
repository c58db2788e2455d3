//! The order of a look at the host, and its limits.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use breakglass_api::v1::left_behind::Category;

use super::{
    accounts::accounts,
    files::Host,
    kernel,
    keys::{configuration, default_patterns, key_file, key_files},
    lines::sudoers,
    places::{HOST, home, host_place, run_user},
    snapshot::{Cut, Snapshot},
    sockets::sockets,
    steps::{Runner, Scope},
    walk,
};

/// How long one step may take. Most take well under a millisecond; this is for a slow disk, and for settings whose lock the kernel holds while
/// programs are attached or detached, as happens at both ends of a session (`ftrace_lock`).
const STEP_TIME: Duration = Duration::from_secs(4);

/// Most files with keys that are read.
const KEY_FILES_MAX: usize = 16 * 1024;

/// Which part of the host to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// All but the walk: some tens of milliseconds.
    Settings,
    /// Only the walk for files with special rights.
    Walk,
}

/// Bounds of a look at the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What to look at.
    pub part: Part,
    /// For everything together.
    pub time: Duration,
    /// Longest part of one file that is read, bytes.
    pub file_bytes: u64,
    /// Read from all files together, bytes.
    pub total_bytes: u64,
    /// Most names that are taken from one folder; the walk is bounded by `walk_entries`.
    pub folder_names: usize,
    /// Most items of one category.
    pub items: usize,
    /// Most entries of one file system that the walk looks at.
    pub walk_entries: u64,
    /// Folders of BPF pins that are the agent's own, and so are not compared.
    pub own_pins: Vec<PathBuf>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            part: Part::Whole,
            time: Duration::from_secs(20),
            file_bytes: 1024 * 1024,
            total_bytes: 64 * 1024 * 1024,
            folder_names: 16 * 1024,
            items: 16 * 1024,
            walk_entries: 4_000_000,
            own_pins: Vec::new(),
        }
    }
}

impl Snapshot {
    /// Looks at the host whose files are under `root`. Blocks for up to `limits.time` and a little; never fails: what could not be looked
    /// at is in [`Snapshot::cuts`].
    pub fn take(root: &Path, limits: Limits) -> Self {
        let part = limits.part;
        let host = match Host::open(root, limits) {
            Ok(host) => host,
            Err(error) => {
                let why = format!("nothing was looked at: {} cannot be opened: {error}", root.display());
                return Self { cuts: vec![Cut { why, ..Cut::default() }], ..Self::default() };
            }
        };
        let mut runner = Runner::new(host);
        if part != Part::Walk {
            settings(&mut runner);
        }
        if part != Part::Settings {
            search(&mut runner);
        }
        runner.finish()
    }
}

/// Everything but the walk: first what is the host's, then what is its users', who can lay more traps.
fn settings(runner: &mut Runner) {
    let users = runner.run(about(Category::User), STEP_TIME, accounts).unwrap_or_else(|| {
        let scope = about(Category::Unspecified);
        runner.say(scope, "what is in the users' homes was not looked at, because the users could not be read");
        Vec::new()
    });
    let patterns = runner.run(about(Category::Ssh), STEP_TIME, configuration).unwrap_or_else(default_patterns);
    runner.run(about(Category::Sudoers), STEP_TIME, sudoers);
    runner.run(about(Category::Socket), STEP_TIME, sockets);
    runner.run(about(Category::KernelModule), STEP_TIME, kernel::modules);
    runner.run(about(Category::Mount), STEP_TIME, kernel::mounts);
    runner.run(about(Category::Bpf), STEP_TIME, kernel::pins);
    runner.run(about(Category::Sysctl), STEP_TIME, kernel::settings);
    runner.run(about(Category::Firewall), STEP_TIME, kernel::firewall);
    for place in HOST {
        let scope = Scope { category: place.category, place: place.path.into() };
        runner.run(scope, STEP_TIME, move |host, sink| host_place(host, sink, place));
    }
    let files = key_files(&users, &patterns);
    if files.len() > KEY_FILES_MAX {
        runner.say(about(Category::AuthorizedKey), "more files than can be read; the rest was left out");
    }
    for (path, whose) in files.into_iter().take(KEY_FILES_MAX) {
        let scope = Scope { category: Category::AuthorizedKey, place: path.clone() };
        runner.run(scope, STEP_TIME, move |host, sink| key_file(host, sink, &path, &whose));
    }
    let homes: std::collections::BTreeSet<_> = users.iter().map(|user| user.home.clone()).collect();
    for path in homes {
        let scope = Scope { category: Category::Unspecified, place: path.clone() };
        runner.run(scope, STEP_TIME, move |host, sink| home(host, sink, &path));
    }
    let scope = Scope { category: Category::Systemd, place: b"/run/user".to_vec() };
    runner.run(scope, STEP_TIME, move |host, sink| users.iter().for_each(|user| run_user(host, sink, user)));
}

/// The walk, one file system after the other, in whatever time is left.
fn search(runner: &mut Runner) {
    let category = Category::PrivilegedFile;
    let plan = runner.run(about(category), STEP_TIME, walk::plan).unwrap_or_default();
    for start in plan.starts.clone() {
        let plan = plan.clone();
        // The place of a walk is the category: what it finds may be anywhere under the start, which is often the root.
        runner.run(about(category), Duration::MAX, move |host, sink| walk::privileged(host, sink, &plan, &start));
    }
}

fn about(category: Category) -> Scope {
    Scope { category, place: Vec::new() }
}
