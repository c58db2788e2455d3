//! `cargo xtask lab`: the tests in virtual machines with stock Debian kernels, where BPF LSM and fexit work and where a test may
//! do to the machine what it likes. How it works and how to add to it: `docs/LAB.md`.
//!
//! *Invariant:* nothing here knows what a test does. A guest gets programs and test binaries on a disk, says over its console
//! how they went, and gives back a folder.

mod host;
mod image;
mod initrd;
mod payload;
mod protocol;
mod qemu;
mod recipe;
mod runner;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Subcommand};

use self::{
    image::Image,
    payload::Built,
    protocol::{Progress, Verdict},
    qemu::{Accelerator, Ending, Machine, Tier},
    recipe::{KERNELS, Kernel},
};
use crate::test::Count;

const EXAMPLES: &str = "\
Examples:
  cargo xtask lab                            every kernel, every test of the lab
  cargo xtask lab --kernel 6.1 bypass        one kernel, tests with \"bypass\" in suite::name
  cargo xtask lab --tier trace kernel_live   without BPF among the active LSMs
  cargo xtask lab shell --kernel 6.12        root's shell in a guest; end it with `exit`, or Ctrl-A X
  cargo xtask lab build --update             newest packages and kernels, and the image made of them

Consoles and evidence go to target/lab/runs. See docs/LAB.md.";

/// Arguments of `cargo xtask lab`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct LabArgs {
    #[command(subcommand)]
    command: Option<LabCommand>,
    #[command(flatten)]
    boot: BootArgs,
    /// Test suite to run (again for more), in place of the usual ones.
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
    /// Minutes after which a guest is switched off and its run has failed.
    #[arg(long, value_name = "MINUTES", default_value_t = TIMEOUT_MINUTES)]
    timeout: u64,
    /// Seconds that one test may take.
    #[arg(long, value_name = "SECONDS", default_value_t = TEST_TIMEOUT_SECONDS)]
    test_timeout: u64,
    /// Run on every kernel also what rests on the guest's own programs and usually runs on one of them.
    #[arg(long)]
    everywhere: bool,
    /// Tests to run: those with one of these in "suite::name".
    #[arg(value_name = "TEST-FILTER")]
    filters: Vec<String>,
}

#[derive(Args, Debug)]
struct BootArgs {
    /// Kernel to boot: 6.1, 6.12 or all.
    #[arg(long, global = true, default_value = ALL, value_parser = kernel_names())]
    kernel: String,
    /// Tier to boot for.
    #[arg(long, global = true, value_enum, default_value_t = Tier::Full)]
    tier: Tier,
    /// What runs the guest's instructions.
    #[arg(long, global = true, value_enum, default_value_t = Accelerator::Auto)]
    accel: Accelerator,
}

#[derive(Subcommand, Debug)]
enum LabCommand {
    /// Boot a guest with its console here, as root, programs and tests in /lab; nothing that is changed there lasts.
    Shell,
    /// Build the guest's image, if it is not in the cache.
    Build {
        /// Fetch package lists first: newer packages make a new image.
        #[arg(long)]
        update: bool,
    },
    /// Run tests inside a guest.
    #[command(hide = true)]
    Guest(runner::RunnerArgs),
}

/// Every kernel.
const ALL: &str = "all";

/// What runs without `--suite`, as far as it exists, in this order: a guest that is not as it should be is seen first.
const USUAL_SUITES: &[&str] = &["lab", "kernel_live", "bypass"];

/// This suite waits more than it computes, mostly until the kernel lets go of detached programs. All but one guest begin with it, so that
/// they compute while the others wait and the other way round.
const IDLE_SUITE: &str = "kernel_live";

/// Emulated, side by side on two processors that do nothing else, the guests take some twenty-one; there are machines half as fast.
const TIMEOUT_MINUTES: u64 = 75;

/// Enough for the slowest test, four times.
const TEST_TIMEOUT_SECONDS: u64 = 1200;

/// Most failed tests that are run again; more of them are no accident.
const AGAIN_MAX: usize = 8;

/// Folders of older runs are removed.
const RUNS_KEPT: usize = 20;

/// Lines of the console that are shown when a guest fails without a failed test.
const CONSOLE_TAIL: usize = 40;

fn kernel_names() -> Vec<&'static str> {
    KERNELS.iter().map(|kernel| kernel.name).chain([ALL]).collect()
}

/// Runs `cargo xtask lab`.
pub fn run(args: LabArgs) -> Result<()> {
    match &args.command {
        Some(LabCommand::Guest(runner)) => runner::run(runner),
        Some(LabCommand::Build { update }) => {
            let image = Image::prepare(&lab_folder()?, *update)?;
            host::say(&format!("the image is ready: {}", image.folder().display()));
            Ok(())
        }
        Some(LabCommand::Shell) => shell(&args.boot),
        None => run_tests(&args),
    }
}

fn lab_folder() -> Result<PathBuf> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    };
    host::make_folder(&target)?;
    let target = target.canonicalize().with_context(|| format!("cannot find {}", target.display()))?;
    Ok(target.join("lab"))
}

/// Every kernel that is asked for; the newest one last.
fn kernels(name: &str) -> Vec<Kernel> {
    KERNELS.iter().copied().filter(|kernel| name == ALL || kernel.name == name).collect()
}

fn shell(boot: &BootArgs) -> Result<()> {
    let kernel = *kernels(&boot.kernel).last().context("no such kernel")?;
    host::install_missing(host::RUN_TOOLS)?;
    let image = Image::prepare(&lab_folder()?, false)?;
    let run_folder = RunFolder::make(kernel)?;
    let disk = run_folder.disk(&image, &payload::build()?, &shell_script())?;
    host::say(&format!("booting {}; Ctrl-A X switches the guest off", kernel.name));
    run_folder.machine(&image, kernel, boot, &disk)?.interact()?;
    run_folder.take_evidence(&disk)
}

/// A login on the serial console. A serial line does not carry the terminal's size, so it goes with the script.
fn shell_script() -> String {
    let size = host::run(host::command("stty").arg("size").stdin(Stdio::inherit())).unwrap_or_default();
    let size = match size.trim().split_once(' ') {
        Some((rows, columns)) => format!("stty -F /dev/ttyS0 rows {rows} columns {columns}\n"),
        None => String::new(),
    };
    format!("#!/bin/sh\n{size}TERM=xterm exec setsid --ctty --wait login -p -f root </dev/ttyS0 >/dev/ttyS0 2>&1\n")
}

/// Runs what `cargo xtask lab` does without arguments and counts how it ended; a guest without a verdict is one failure.
pub fn usual() -> Result<Count> {
    let boot = BootArgs { kernel: ALL.into(), tier: Tier::Full, accel: Accelerator::Auto };
    let (timeout, test_timeout) = (TIMEOUT_MINUTES, TEST_TIMEOUT_SECONDS);
    let args = LabArgs {
        command: None,
        boot,
        suites: Vec::new(),
        timeout,
        test_timeout,
        everywhere: false,
        filters: Vec::new(),
    };
    Ok(run_kernels(&args)?.0)
}

fn run_tests(args: &LabArgs) -> Result<()> {
    let (_, failures) = run_kernels(args)?;
    ensure!(failures.is_empty(), "the lab failed on {}", failures.join(", "));
    Ok(())
}

fn run_kernels(args: &LabArgs) -> Result<(Count, Vec<&'static str>)> {
    host::install_missing(host::RUN_TOOLS)?;
    let image = Image::prepare(&lab_folder()?, false)?;
    let built = payload::build()?;
    let suites = suites(&args.suites, &built)?;
    let (mut count, mut failures) = (Count::default(), Vec::new());
    let start = Instant::now();
    // Side by side: most of what a guest does keeps one processor busy.
    let ended = thread::scope(|scope| {
        let guests: Vec<_> = kernels(&args.boot.kernel)
            .into_iter()
            .map(|kernel| {
                let (image, built, suites) = (&image, &built, &suites);
                let guest = scope.spawn(move || run_kernel(args, image, built, suites, kernel));
                (kernel, guest)
            })
            .collect();
        guests.into_iter().map(|(kernel, guest)| (kernel, guest.join())).collect::<Vec<_>>()
    });
    for (kernel, guest) in ended {
        let (verdict, result) =
            guest.unwrap_or_else(|_| (Verdict::default(), Err(anyhow!("the thread that ran it panicked"))));
        count +=
            Count { passed: verdict.passed.into(), failed: verdict.failed.into(), skipped: verdict.skipped.into() };
        if let Err(error) = result {
            host::say(&format!("{}: FAILED: {error:#}", kernel.name));
            failures.push(kernel.name);
            // Whatever went wrong, it counts.
            count.failed += u64::from(verdict.failed == 0);
        }
    }
    host::say(&format!("{:.0} s for all kernels, side by side", start.elapsed().as_secs_f64()));
    Ok((count, failures))
}

fn suites(wanted: &[String], built: &Built) -> Result<Vec<String>> {
    let known: Vec<&str> = built.suites().collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no test suite {unknown}; there are: {}", known.join(", "));
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    Ok(USUAL_SUITES.iter().filter(|name| known.contains(name)).map(|name| name.to_string()).collect())
}

/// The suites in the order in which a guest runs them.
fn staggered(suites: &[String], kernel: Kernel) -> Vec<String> {
    let mut suites = suites.to_vec();
    if KERNELS.first().is_some_and(|first| first.name != kernel.name) {
        // What is false comes first; the others stay as they are.
        suites.sort_by_key(|suite| suite != IDLE_SUITE);
    }
    suites
}

/// Runs the tests in a guest, and those that failed again in a fresh one, to tell what is broken from what is unsteady: an emulator that
/// shares its processors with others trips over deadlines, and a test that failed may leave a guest that refuses all others. What failed
/// has failed, whatever comes of it.
fn run_kernel(
    args: &LabArgs,
    image: &Image,
    built: &Built,
    suites: &[String],
    kernel: Kernel,
) -> (Verdict, Result<()>) {
    let mut progress = Progress::default();
    let suites = &staggered(suites, kernel);
    let first = run_guest(args, image, built, &test_script(args, suites, &args.filters, kernel), kernel, &mut progress);
    let verdict = progress.verdict.unwrap_or_default();
    let failed = progress.failed_tests();
    let Err(error) = first else { return (verdict, Ok(())) };
    if failed.is_empty() || failed.len() > AGAIN_MAX {
        return (verdict, Err(error));
    }
    host::say(&format!("{}: {error:#}; once more in a fresh guest: {}", kernel.name, failed.join(", ")));
    let script = test_script(args, suites, &failed, kernel);
    let error = match run_guest(args, image, built, &script, kernel, &mut Progress::default()) {
        Ok(()) => error.context(format!("unsteady, as all of it passed in a fresh guest: {}", failed.join(", "))),
        Err(second) => second,
    };
    (verdict, Err(error))
}

fn run_guest(
    args: &LabArgs,
    image: &Image,
    built: &Built,
    script: &str,
    kernel: Kernel,
    progress: &mut Progress,
) -> Result<()> {
    let start = Instant::now();
    let folder = RunFolder::make(kernel)?;
    let disk = folder.disk(image, built, script)?;
    let machine = folder.machine(image, kernel, &args.boot, &disk)?;
    host::say(&format!(
        "{}: booting ({:?}), console in {}",
        kernel.name,
        machine.accelerator,
        folder.console().display()
    ));
    let ending = machine.run(&folder.console(), Duration::from_secs(args.timeout * 60), |line| {
        if progress.line(line) {
            println!("{:>4} | {}", kernel.name, host::printable(line));
        }
    })?;
    folder.take_evidence(&disk)?;
    let complaint = match ending {
        Ending::Off => progress.complaint(),
        Ending::TimedOut => Some(format!("switched off after {} minutes", args.timeout)),
    };
    let verdict = progress.verdict.unwrap_or_default();
    host::say(&format!("{}: {verdict}, {:.0} s in all", kernel.name, start.elapsed().as_secs_f64()));
    match complaint {
        None => Ok(()),
        Some(complaint) => {
            print!("{}", explain(&folder, kernel, progress)?);
            bail!("{complaint}; evidence in {}", folder.path.display())
        }
    }
}

/// What failed or, where no test did, how the console ended; in one piece, since another guest may be talking.
fn explain(folder: &RunFolder, kernel: Kernel, progress: &Progress) -> Result<String> {
    if !progress.troubles.is_empty() {
        let lines = progress.troubles.iter().map(|line| format!("{:>4} | {}\n", kernel.name, host::printable(line)));
        return Ok(lines.collect());
    }
    let path = folder.console();
    let console = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let console = String::from_utf8_lossy(&console);
    let lines = host::tail(&console, CONSOLE_TAIL);
    let lines = lines.lines().map(|line| format!("{:>4} |     {}\n", kernel.name, host::printable(line.trim_end())));
    Ok(format!("{:>4} | the console's last lines:\n{}", kernel.name, lines.collect::<String>()))
}

/// The program that the guest starts. Panics show where they came from; errors say what they have to, and a backtrace of each would push that
/// out of the lines that are shown. Test names come from the command line, so they are quoted.
fn test_script(args: &LabArgs, suites: &[String], filters: &[String], kernel: Kernel) -> String {
    let suites: String = suites.iter().map(|suite| format!(" --suite {}", quote(suite))).collect();
    let filters: String = filters.iter().map(|filter| format!(" {}", quote(filter))).collect();
    format!(
        "#!/bin/sh\n\
         if [ -e {started} ] && [ ! -e {resume} ]; then echo 'LAB ERROR the guest crashed and booted anew'; exit; fi\n\
         touch {started}; sync {started}\n\
         export BREAKGLASS_LAB_KERNEL={} BREAKGLASS_LAB_TIER={} BREAKGLASS_BIN_DIR=/lab/bin RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=0{everywhere}\n\
         /lab/bin/xtask lab guest --test-timeout {}{suites} --{filters} || echo \"LAB ERROR the tests could not be run\"\n",
        kernel.name,
        args.boot.tier.name(),
        args.test_timeout,
        everywhere = if args.everywhere { " BREAKGLASS_LAB_EVERYWHERE=1" } else { "" },
        started = runner::STARTED,
        resume = runner::RESUME,
    )
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `target/lab/runs/TIME-KERNEL`.
struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    fn make(kernel: Kernel) -> Result<Self> {
        let runs = lab_folder()?.join("runs");
        host::make_folder(&runs)?;
        remove_old_runs(&runs)?;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string().replace(':', "");
        let path = runs.join(format!("{time}-{}", kernel.name));
        fs::create_dir(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self { path })
    }

    fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    fn disk(&self, image: &Image, built: &Built, run: &str) -> Result<PathBuf> {
        let disk = self.path.join("lab.ext4");
        payload::make_disk(image, built, run, &self.path.join("payload"), &disk)?;
        Ok(disk)
    }

    fn machine<'a>(&'a self, image: &'a Image, kernel: Kernel, boot: &BootArgs, disk: &'a Path) -> Result<Machine<'a>> {
        let accelerator = qemu::choose(boot.accel, image, kernel, &self.path)?;
        Ok(Machine { image, kernel, tier: boot.tier, accelerator, disk, scratch: &self.path })
    }

    /// Takes the evidence off the disk, and with that the disk is done.
    fn take_evidence(&self, disk: &Path) -> Result<()> {
        payload::take_evidence(disk, &self.path)?;
        fs::remove_file(disk).with_context(|| format!("cannot remove {}", disk.display()))
    }
}

/// Names begin with the time, so their order is their age.
fn remove_old_runs(runs: &Path) -> Result<()> {
    let mut folders = fs::read_dir(runs)
        .with_context(|| format!("cannot list {}", runs.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    folders.sort();
    let surplus = folders.len().saturating_sub(RUNS_KEPT - 1);
    folders.iter().take(surplus).try_for_each(|folder| host::remove_folder(folder))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        lab: LabArgs,
    }

    fn parse(line: &str) -> LabArgs {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}")).lab
    }

    #[test]
    fn guests_do_not_all_wait_at_once() {
        let suites: Vec<String> = USUAL_SUITES.iter().map(|name| name.to_string()).collect();
        let orders: Vec<_> = KERNELS.iter().map(|kernel| staggered(&suites, *kernel)).collect();
        assert_eq!(orders, [vec!["lab", "kernel_live", "bypass"], vec!["kernel_live", "lab", "bypass"]]);
    }

    #[test]
    fn a_kernel_and_filters_can_be_given_in_any_order() {
        let args = parse("lab --kernel 6.1 bypass guard");
        assert_eq!((args.boot.kernel.as_str(), args.filters.len()), ("6.1", 2));
        assert!(args.command.is_none());
        for line in ["lab shell --kernel 6.1", "lab --kernel 6.1 shell"] {
            let args = parse(line);
            assert!(matches!(args.command, Some(LabCommand::Shell)));
            assert_eq!(kernels(&args.boot.kernel), [KERNELS[0]]);
        }
        assert_eq!(kernels(&parse("lab").boot.kernel), KERNELS);
        assert!(Cli::try_parse_from(["lab", "--kernel", "5.4"]).is_err());
    }

    #[test]
    fn the_guest_is_asked_for_exactly_what_the_host_was() {
        let args = parse("lab --test-timeout 9 it's");
        let script = test_script(&args, &["lab".into()], &args.filters, KERNELS[1]);
        assert!(script.contains(r"--test-timeout 9 --suite 'lab' -- 'it'\''s' ||"), "{script}");
        assert!(script.contains("BREAKGLASS_LAB_KERNEL=6.12 BREAKGLASS_LAB_TIER=full"), "{script}");
        assert!(!script.contains("EVERYWHERE"), "{script}");
        let script = test_script(&parse("lab --everywhere"), &[], &[], KERNELS[0]);
        assert!(script.contains(" BREAKGLASS_LAB_EVERYWHERE=1\n"), "{script}");
    }

    #[test]
    fn only_the_newest_runs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        (0..RUNS_KEPT + 3).for_each(|number| fs::create_dir(folder.path().join(format!("{number:03}"))).unwrap());
        remove_old_runs(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), RUNS_KEPT - 1);
        assert!(folder.path().join(format!("{:03}", RUNS_KEPT + 2)).exists());
    }
}
