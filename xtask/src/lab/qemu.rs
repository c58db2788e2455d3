//! Starting a guest: the accelerator, the virtual machine, its console.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{host, image::Image, recipe::Kernel};

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accelerator {
    /// KVM where a smoke boot passes, emulation elsewhere.
    Auto,
    /// Emulation: works everywhere, several times slower.
    Tcg,
    /// The processor's own virtualisation, without trying first.
    Kvm,
}

/// Which of the tiers that a stock kernel can give it is booted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// BPF is an active LSM.
    Full,
    /// BPF is left out of `lsm=`.
    Trace,
}

/// One boot.
pub struct Machine<'a> {
    /// The image that it boots.
    pub image: &'a Image,
    /// The kernel.
    pub kernel: Kernel,
    /// The tier.
    pub tier: Tier,
    /// How, already decided.
    pub accelerator: Accelerator,
    /// A raw ext4 file system that the guest mounts at `/lab`, writable.
    pub disk: &'a Path,
    /// Folder for what QEMU writes while it runs.
    pub scratch: &'a Path,
}

/// How a guest ended.
pub enum Ending {
    /// It switched itself off, also after a crash: a panic reboots, and what boots then finds that nobody asked for it.
    Off,
    /// It was still running at the limit and was killed.
    TimedOut,
}

/// Memory of the guest in MiB: rings of tens of MiB, PostgreSQL and a compiler fit; two guests fit on a small host.
const MEMORY_MIB: &str = "2048";

/// Processors of the guest: two, so that races between them can happen. Suites that need none use one (`runner/processors.rs`).
const PROCESSORS: &str = "2";

/// A host with working KVM does the smoke boot in two seconds; a broken one hangs.
const SMOKE_LIMIT: Duration = Duration::from_secs(20);

/// Lines of the console that may wait while the host prints; the reader then waits too.
const CONSOLE_BACKLOG: usize = 1024;

/// Longer lines of the console are taken in pieces, so that a guest cannot fill the host's memory.
const CONSOLE_LINE_MAX: u64 = 64 * 1024;

impl Tier {
    /// As given to the tests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Trace => "trace",
        }
    }

    fn lsm(self) -> &'static str {
        match self {
            Self::Full => "lockdown,capability,landlock,yama,apparmor,tomoyo,bpf",
            Self::Trace => "lockdown,capability,landlock,yama,apparmor,tomoyo",
        }
    }
}

impl Machine<'_> {
    /// Boots and waits until the guest is off, handing every line of its console to `watch` and writing it to `log`.
    pub fn run(&self, log: &Path, limit: Duration, watch: impl FnMut(&str)) -> Result<Ending> {
        let mut command = self.command();
        command.args(["-serial", "stdio"]).stdout(Stdio::piped());
        follow(command, log, limit, watch)
    }

    /// Boots with the guest's console on this terminal, until the guest is off.
    pub fn interact(&self) -> Result<()> {
        let mut command = self.command();
        command.args(["-serial", "mon:stdio"]).stdin(Stdio::inherit());
        let status = command.status().context("cannot start qemu-system-x86_64")?;
        if !status.success() {
            bail!("qemu-system-x86_64 failed ({status})");
        }
        Ok(())
    }

    fn command(&self) -> Command {
        // Programs at functions and tracepoints are taken away one after the other, each behind waits of the kernel's (RCU), which it does
        // sooner when asked to; dozens of programs are, in every other test.
        let append = format!(
            "console=ttyS0 rw quiet loglevel=4 panic=-1 lsm={} rcupdate.rcu_expedited=1 systemd.unit=lab.target systemd.show_status=false",
            self.tier.lsm()
        );
        let mut command =
            base_command(self.accelerator, &self.image.kernel(self.kernel), &self.image.initrd(self.kernel));
        // `snapshot=on` puts what the guest writes to its root disk in a nameless file in the folder TMPDIR.
        command.env("TMPDIR", self.scratch).args(["-append", &append]);
        for (file, serial, options) in
            [(self.image.root_disk().as_path(), "lab-root", "snapshot=on"), (self.disk, "lab-disk", "cache=unsafe")]
        {
            let path = file.display().to_string().replace(',', ",,");
            command.args(["-drive", &format!("file={path},format=raw,if=none,id={serial},{options}")]);
            command.args(["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
        }
        // A test may start the machine anew, and its root disk lasts as long as QEMU does. What was not asked for is found by the script
        // that the guest runs, which then ends it.
        command.args(["-action", "reboot=reset"]);
        // Two serial ports wired to each other: a console, and somebody who sits at it.
        let wire = format!("path=breakglass-lab-{}-{},abstract=on", std::process::id(), self.kernel.name);
        for (end, role) in [("line-a", ",server=on,wait=off"), ("line-b", "")] {
            command.args(["-chardev", &format!("socket,id={end},{wire}{role}")]);
            command.args(["-device", &format!("pci-serial,chardev={end}")]);
        }
        command
    }
}

fn base_command(accelerator: Accelerator, kernel: &Path, initrd: &Path) -> Command {
    let (options, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        // A fifth level of page tables would make every look-up of the emulator's longer.
        Accelerator::Tcg | Accelerator::Auto => ("tcg,thread=multi", "max,la57=off"),
    };
    // A guest that outlived a killed xtask would go on using the processors.
    let mut command = host::command("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    command.args(["-machine", "pc", "-accel", options, "-cpu", cpu, "-smp", PROCESSORS, "-m", MEMORY_MIB]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command
}

/// Decides between KVM and emulation. The result of a smoke boot is kept for as long as the host is up.
pub fn choose(wish: Accelerator, image: &Image, kernel: Kernel, scratch: &Path) -> Result<Accelerator> {
    if wish != Accelerator::Auto {
        return Ok(wish);
    }
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the host's boot id")?;
    let verdict: PathBuf = image.folder().join(format!("kvm-{}", boot.trim()));
    if !verdict.exists() {
        let works = smoke(image, kernel, scratch)?;
        host::write(&verdict, if works { "works" } else { "broken" })?;
    }
    let works = fs::read_to_string(&verdict).is_ok_and(|text| text == "works");
    Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
}

/// Boots the kernel as far as its first program under KVM.
fn smoke(image: &Image, kernel: Kernel, scratch: &Path) -> Result<bool> {
    host::say(&format!("trying KVM (at most {} s)", SMOKE_LIMIT.as_secs()));
    let mut command = base_command(Accelerator::Kvm, &image.kernel(kernel), &image.initrd(kernel));
    command.args(["-append", "console=ttyS0 quiet panic=-1 lab.smoke", "-serial", "stdio"]).stdout(Stdio::piped());
    let mut passed = false;
    let ending = follow(command, &scratch.join("kvm-smoke.log"), SMOKE_LIMIT, |line| passed |= line == "LAB SMOKE OK");
    let works = passed && matches!(ending, Ok(Ending::Off));
    host::say(if works { "KVM works" } else { "KVM does not work here, falling back to emulation" });
    Ok(works)
}

/// Runs QEMU to its end, at most for `limit`.
fn follow(mut command: Command, log: &Path, limit: Duration, mut watch: impl FnMut(&str)) -> Result<Ending> {
    let deadline = Instant::now() + limit;
    let complaints = log.with_extension("qemu.log");
    let stderr = File::create(&complaints).with_context(|| format!("cannot make {}", complaints.display()))?;
    let mut log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut guest = Guest(command.stderr(stderr).spawn().context("cannot start qemu-system-x86_64")?);
    let console = guest.0.stdout.take().context("QEMU has no standard output")?;
    let (sender, lines) = mpsc::sync_channel(CONSOLE_BACKLOG);
    std::thread::spawn(move || read_lines(console, &sender));
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                log.write_all(&line).context("cannot write the console's log")?;
                watch(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
            }
            Err(RecvTimeoutError::Timeout) => return Ok(Ending::TimedOut),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = guest.0.wait().context("cannot wait for QEMU")?;
    if !status.success() {
        let complaint = fs::read_to_string(&complaints).unwrap_or_default();
        bail!("QEMU failed ({status}): {}", host::tail(&complaint, 10));
    }
    Ok(Ending::Off)
}

/// A line at a time, with its line feed; stops when either side does.
fn read_lines(console: impl Read, sender: &mpsc::SyncSender<Vec<u8>>) {
    let mut console = BufReader::new(console);
    loop {
        let mut line = Vec::new();
        match (&mut console).take(CONSOLE_LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if sender.send(line).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Does not outlive the run.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail if it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow_script(script: &str, limit: Duration) -> (Result<Ending>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = host::command("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let mut seen = Vec::new();
        let ending = follow(command, &folder.path().join("console.log"), limit, |line| seen.push(line.to_owned()));
        (ending, seen)
    }

    #[test]
    fn every_line_is_seen_and_carriage_returns_are_dropped() {
        let (ending, seen) = follow_script("printf 'one\\r\\ntwo'", Duration::from_secs(10));
        assert!(matches!(ending, Ok(Ending::Off)));
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn a_hanging_guest_is_killed() {
        let (ending, seen) = follow_script("echo up; exec sleep 600", Duration::from_millis(300));
        assert!(matches!(ending, Ok(Ending::TimedOut)));
        assert_eq!(seen, ["up"]);
    }

    #[test]
    fn a_failure_of_qemu_says_why() {
        let (ending, _) = follow_script("echo no such machine >&2; exit 1", Duration::from_secs(10));
        assert!(format!("{:#}", ending.err().unwrap()).contains("no such machine"));
    }
}
