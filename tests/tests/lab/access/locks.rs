//! The account opens whatever is wrong with the host, and is locked again whatever becomes of the agent, the clock or the first process.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::Opened;
use breakglass_tests::{machine, poll};

use super::{
    cases::Cases,
    host::{ACCOUNT, Host, NO_PAM, PAM, SOON, running},
};
use crate::guest::{Guest, shell};

/// Long enough for a few logins under emulation.
const SHORT: Duration = Duration::from_secs(45);

/// Behind the deadline of a hanging agent: five seconds until the timer, the timer's own second, and the program's start.
const BACKSTOP: Duration = Duration::from_secs(40);

/// The setting as the package has it, and where whoever is root may kill the agent.
const UNGUARDED: (&str, &str) = ("# maximum_tier = \"full\"", "maximum_tier = \"trace\"");

#[test]
fn opens_whatever_is_wrong() -> Result<()> {
    let Some(_guest) = Guest::on("6.12") else { return Ok(()) };
    let host = Host::up()?;
    let mut cases = Cases::default();
    for (what, spoil, mend) in WRONG {
        cases.case(&format!("opens and locks with {what}"), || {
            shell(spoil)?;
            let result = there_and_back(&host, what);
            shell(mend)?;
            result
        });
    }
    for (what, year) in [("years behind", 2001), ("years ahead", 2091)] {
        cases.case(
            &format!("opens with the clock {what}, stays open when it is set right, and ends by the boot clock"),
            || clock(&host, year),
        );
    }
    cases.verdict()
}

#[test]
fn locks_whatever_happens() -> Result<()> {
    let Some(_guest) = Guest::on("6.12") else { return Ok(()) };
    let host = Host::up()?;
    let mut cases = Cases::default();
    cases.case("in a session nobody makes the agent die or stop", || unassailable(&host));
    // Where the guard cannot be had they may.
    let status = host.restart_with(&[UNGUARDED])?;
    ensure!(status.tier == "trace", "the tier is {}", status.tier);
    cases.case("a crash of the agent locks, and what runs goes on being recorded", || crash(&host, "ABRT"));
    cases.case("kill -9 locks, and what runs goes on being recorded", || crash(&host, "KILL"));
    cases.case("an agent that hangs is overtaken by the timer", || hang(&host));
    host.restart_with(&[(UNGUARDED.1, UNGUARDED.0)])?;
    cases.case("the unit that runs before logins at boot locks what it finds open", || lock_first(&host));
    cases.case("that unit waits for who changes the account files", lock_waits);
    cases.case("the lock comes before everything that lets somebody in", boot_order);
    cases.verdict()
}

/// What is wrong, how it comes about, and how it ends. All of it as the host sees it, PID 1's mounts included.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "/etc read-only",
        "mount --bind /etc /etc; mount -o remount,bind,ro /etc; ! touch /etc/probe 2>/dev/null",
        "umount -l /etc; touch /etc/probe; rm /etc/probe",
    ),
    (
        "the disk full",
        "mkdir -p /var/tmp/fill; cd /var/tmp/fill; n=0; \
         for size in 1G 256M 64M 16M 4M 1M 256K 64K 16K 4K; do while fallocate -l $size $n 2>/dev/null; do n=$((n + 1)); done; rm -f $n; done; \
         ! head -c 65536 /dev/zero > last 2>/dev/null",
        "rm -rf /var/tmp/fill",
    ),
    (
        "name service and collector black holes",
        "touch /etc/resolv.conf; cp -a /etc/resolv.conf /etc/resolv.conf.lab; echo nameserver 192.0.2.53 > /etc/resolv.conf; \
         ip link add hole type dummy; ip address add 192.0.2.1/24 dev hole; ip link set hole up; \
         systemctl kill --signal=STOP breakglass-collector",
        "systemctl kill --signal=CONT breakglass-collector; ip link del hole; mv /etc/resolv.conf.lab /etc/resolv.conf",
    ),
    (
        "PID 1 under load",
        "systemd-run --quiet --unit=load sh -c 'while :; do systemctl daemon-reload; done'",
        "systemctl stop load",
    ),
];

/// Opens, logs in both ways, closes, and is refused both ways.
fn there_and_back(host: &Host, what: &str) -> Result<()> {
    host.with_session(what, |_| both(host, true))?;
    both(host, false)?;
    is_locked()
}

fn both(host: &Host, lets_in: bool) -> Result<()> {
    for port in [PAM, NO_PAM] {
        ensure!(host.key_lets_in(port)? == lets_in, "at port {port}: {}", if lets_in { "refused" } else { "let in" });
    }
    Ok(())
}

fn is_locked() -> Result<()> {
    let entry = fs::read_to_string("/etc/shadow")?;
    let entry = entry.lines().find(|line| line.starts_with("breakglass:")).context("no entry")?;
    ensure!(entry.starts_with("breakglass:!*:") && entry.ends_with(":0:"), "not locked: {entry}");
    ensure!(!Path::new("/run/breakglass/keys").join(ACCOUNT).exists(), "a key is left");
    let mounts = fs::read_to_string("/proc/1/mountinfo")?;
    ensure!(!mounts.contains("breakglass-shadow-overlay"), "a copy is left over the shadow file");
    Ok(())
}

fn clock(host: &Host, year: u32) -> Result<()> {
    let before = machine::boot_ns()?;
    let wall: u64 = shell("date +%s")?.trim().parse()?;
    shell(&format!("date --set {year}-06-15"))?;
    let opened = host.open("the clock is wrong", SHORT);
    let in_wrong = host.key_lets_in(PAM);
    let passed = (machine::boot_ns()? - before) / 1_000_000_000;
    shell(&format!("date --set @{}", wall + passed))?;
    let opened = opened?;
    ensure!(in_wrong?, "refused while the clock was wrong");
    ensure!(host.key_lets_in(NO_PAM)?, "refused after the clock was set right");
    ends_on_time(host, &opened)
}

/// The deadline comes, neither early nor late, and locks.
fn ends_on_time(host: &Host, opened: &Opened) -> Result<()> {
    host.wait_for_state("locked")?;
    let now = machine::boot_ns()?;
    ensure!(now >= opened.deadline_boot_ns, "closed before its deadline");
    let late = Duration::from_nanos(now - opened.deadline_boot_ns);
    ensure!(late < Duration::from_secs(15), "closed {late:?} after its deadline");
    is_locked()?;
    both(host, false)
}

/// A program of the session that stays.
struct Lasting {
    ssh: Child,
    word: String,
}

impl Lasting {
    fn start(host: &Host, word: &str) -> Result<Self> {
        let mut ssh = host.ssh(PAM, &host.key());
        ssh.args(["127.0.0.1", "sleep", word]).stdin(Stdio::null()).stdout(Stdio::null());
        let this = Self { ssh: ssh.spawn()?, word: word.to_owned() };
        poll::until_true("the session's program", SOON, || Ok(this.runs()))?;
        Ok(this)
    }

    fn runs(&self) -> bool {
        running(&self.word) > 0
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        // It has ended with the session.
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

fn unassailable(host: &Host) -> Result<()> {
    host.with_session("the agent is to die", |_| {
        let first = pid()?;
        for signal in ["ABRT", "KILL", "STOP"] {
            let kill = format!("systemctl kill --kill-whom=main --signal={signal} breakglass-agent");
            ensure!(shell(&kill).is_err(), "systemd was allowed SIG{signal}");
            ensure!(shell(&format!("kill -{signal} {first}")).is_err(), "root was allowed SIG{signal}");
        }
        ensure!(pid()? == first && host.status()?.state == "open", "{:?}", host.status()?);
        both(host, true)
    })
}

fn crash(host: &Host, signal: &str) -> Result<()> {
    host.open("the agent dies", Duration::from_secs(600))?;
    let lasting = Lasting::start(host, &format!("86400.{signal}").replace("ABRT", "1").replace("KILL", "2"))?;
    let first = pid()?;
    shell(&format!("systemctl kill --kill-whom=main --signal={signal} breakglass-agent"))?;
    poll::until_true("the account to be locked", SOON, || Ok(is_locked().is_ok()))?;
    poll::until_true("another agent", SOON, || Ok(pid()? != first && host.status().is_ok()))?;
    is_locked()?;
    both(host, false)?;
    ensure!(lasting.runs(), "what ran was killed");
    let status = host.status()?;
    ensure!(status.state == "resumed" && status.live_processes > 0, "the session is {}", status.state);
    host.close()?;
    ensure!(!lasting.runs(), "a program outlived the session");
    is_locked()
}

fn pid() -> Result<u32> {
    Ok(shell("systemctl show -P MainPID breakglass-agent")?.trim().parse()?)
}

fn hang(host: &Host) -> Result<()> {
    let opened = host.open("the agent hangs", SHORT)?;
    ensure!(host.key_lets_in(PAM)?, "refused");
    shell("systemctl is-active breakglass-backstop.timer")?;
    shell("systemctl kill --kill-whom=main --signal=STOP breakglass-agent")?;
    let result = overtaken(host, &opened);
    shell("systemctl kill --kill-whom=main --signal=CONT breakglass-agent")?;
    result?;
    host.wait_for_state("locked")?;
    is_locked()
}

fn overtaken(host: &Host, opened: &Opened) -> Result<()> {
    poll::until_true("the deadline", SOON, || Ok(machine::boot_ns()? > opened.deadline_boot_ns))?;
    // The boot clock is enough for key source and gate.
    both(host, false)?;
    poll::until_true("the timer to lock", BACKSTOP, || Ok(is_locked().is_ok()))
}

/// What a host without power leaves: an open entry, a copy over it, and a key of an earlier boot.
fn lock_first(host: &Host) -> Result<()> {
    shell("usermod -p '*' -e '' breakglass; chage -d 20000 breakglass")?;
    let keys = "/run/breakglass/keys";
    shell(&format!("install -d -m 0755 {keys}; printf 'breakglass-key v3\\n' > {keys}/breakglass"))?;
    shell(
        "install -d -m 0700 /run/breakglass/overlay; cp -a /etc/shadow /run/breakglass/overlay/breakglass-shadow-overlay; \
         mount --bind /run/breakglass/overlay/breakglass-shadow-overlay /etc/shadow",
    )?;
    both(host, false)?;
    shell("systemctl restart breakglass-lock")?;
    is_locked()
}

/// Somebody holds the lock on the account files for less than `lckpwdf(3)` waits: boots are busy, and disks are slow.
fn lock_waits() -> Result<()> {
    const HELD_SECONDS: u64 = 9;
    // It would lock by itself.
    shell("systemctl stop breakglass-agent; usermod -p '*' -e '' breakglass")?;
    let script = format!(
        "import fcntl, time; file = open('/etc/.pwd.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); \
         print('held', flush=True); time.sleep({HELD_SECONDS})"
    );
    let mut holder = Command::new("python3").args(["-c", &script]).stdout(Stdio::piped()).spawn()?;
    let mut said = [0; 4];
    let held = holder.stdout.take().context("no output")?.read_exact(&mut said);
    let start = Instant::now();
    let locked = held.map_err(Into::into).and_then(|()| shell("systemctl restart breakglass-lock"));
    let waited = start.elapsed();
    holder.wait()?;
    let started = shell("systemctl start breakglass-agent");
    locked?;
    started?;
    ensure!(waited >= Duration::from_secs(HELD_SECONDS - 3), "nothing was waited for: {waited:?}");
    is_locked()
}

fn boot_order() -> Result<()> {
    let before = shell("systemctl show -P Before breakglass-lock")?;
    let units = ["ssh.service", "systemd-user-sessions.service", "cron.service", "atd.service", "sysinit.target"];
    for unit in units {
        ensure!(before.split_whitespace().any(|word| word == unit), "not before {unit}: {before}");
    }
    // What does not say otherwise comes after sysinit.target, and consoles after user sessions.
    for unit in ["getty@tty1.service", "serial-getty@ttyS1.service"] {
        let after = Command::new("systemctl").args(["cat", unit]).output()?;
        let text = String::from_utf8_lossy(&after.stdout).into_owned();
        // The lab masks what it has no use for.
        let orders = text.contains("systemd-user-sessions.service") || text.contains("is masked");
        ensure!(text.is_empty() || orders, "{unit}: {text}");
    }
    ensure!(shell("systemctl show -P After ssh.service")?.contains("breakglass-lock.service"), "sshd does not wait");
    Ok(())
}
