//! Every way in, before, during and after a session: by key, by code, at a console, through `su` and `sudo`, by copying files, by a
//! second channel in an open connection, by jobs and service managers.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Login, event::Body};
use breakglass_tests::{machine, poll, sshd::make_key, terminal::Terminal};

use super::{
    cases::Cases,
    host::{ACCOUNT, Host, NO_PAM, OPERATOR, PAM, SOON, lets_in, said},
};
use crate::guest::{Guest, shell};

/// A job that cron starts every minute as the account.
const CRON_FILE: &str = "/etc/cron.d/breakglass-lab";
const CRON_PROOF: &str = "/var/tmp/cron-was-here";

#[test]
fn nobody_gets_in_before_or_after_a_session_and_the_operator_does_during() -> Result<()> {
    let Some(_guest) = Guest::on("6.1") else { return Ok(()) };
    let host = Host::up()?;
    make_key(&host.path("stranger"), "stranger")?;
    let mut cases = Cases::default();
    cases.case("cron does not run the account's jobs at rest", cron_is_refused);
    let codes = host.issue_codes(6)?;
    at_rest(&host, &mut cases, "before");
    let kept = during(&host, &mut cases)?;
    at_rest(&host, &mut cases, "after");
    cases.case("after: the connection of a session is dead, and takes no new channel", || kept.ended(&host));
    codes_open(&host, &mut cases, &codes);
    cases.case("each login is in the record, with whose key it was", || logins_are_recorded(&host));
    cases.verdict()
}

fn at_rest(host: &Host, cases: &mut Cases, when: &str) {
    let mut refused = |name: &str, gets_in: &dyn Fn() -> Result<bool>| {
        cases.case(&format!("{when}: no entry by {name}"), || {
            ensure!(!gets_in()?, "somebody got in");
            ensure!(host.status()?.state == "locked", "something opened");
            Ok(())
        });
    };
    refused("the operator's key", &|| host.key_lets_in(PAM));
    refused("the operator's key, where sshd does not use PAM", &|| host.key_lets_in(NO_PAM));
    refused("scp", &|| copies(host, "scp"));
    refused("sftp", &|| copies(host, "sftp"));
    refused("a wrong code over ssh", &|| host.typed_lets_in(PAM, "AAAA-AAAA-AAAA-AAAA-AAAA"));
    refused("an empty password at the console", &|| at_console(host, ""));
    refused("root's su", &|| becomes("su - breakglass -c 'echo in'"));
    refused("root's su of another user", &|| becomes("runuser -u nobody -- su breakglass -c 'echo in' </dev/null"));
    refused("root's sudo -u", &|| becomes("sudo -u breakglass echo in"));
    refused("root's login -f", &|| becomes("setsid --wait script -qec 'login -f breakglass' /dev/null </dev/null"));
    refused("the service manager", &|| manager_starts(host));
}

/// What works during a session; gives the connection that stays open.
fn during(host: &Host, cases: &mut Cases) -> Result<Multiplexed> {
    host.open("every way in", Duration::from_secs(600))?;
    let mut let_in = |name: &str, expected: bool, gets_in: &dyn Fn() -> Result<bool>| {
        cases.case(&format!("during: {name}"), || {
            ensure!(gets_in()? == expected, "it {}", if expected { "was refused" } else { "got in" });
            Ok(())
        });
    };
    let_in("the operator's key", true, &|| host.key_lets_in(PAM));
    let_in("the operator's key, where sshd does not use PAM", true, &|| host.key_lets_in(NO_PAM));
    let_in("a shell at a terminal, and root by sudo", true, &|| terminal_works(host));
    let_in("scp", true, &|| copies(host, "scp"));
    let_in("sftp", true, &|| copies(host, "sftp"));
    let_in("no stranger's key", false, &|| {
        lets_in(host.ssh(PAM, &host.path("stranger")).args(["127.0.0.1", "echo in"]))
    });
    let_in("no wrong code", false, &|| host.typed_lets_in(PAM, "AAAA-AAAA-AAAA-AAAA-AAAA"));
    let kept = Multiplexed::start(host)?;
    cases.case("during: a second channel in an open connection", || {
        ensure!(kept.channel(host)? == "in\n", "no second channel");
        Ok(())
    });
    host.close()?;
    Ok(kept)
}

/// A code opens at sshd's prompt, at the console and through `su`, each once.
fn codes_open(host: &Host, cases: &mut Cases, codes: &[String]) {
    let mut once = |name: &str, code: &str, gets_in: &dyn Fn(&str) -> Result<bool>| {
        cases.case(&format!("a code opens {name}, once"), || {
            ensure!(gets_in(code)?, "the code did not open");
            let operator = host.wait_for_state("open")?.operator;
            ensure!(operator.starts_with("code:"), "opened by {operator}");
            host.close()?;
            ensure!(!gets_in(code)?, "the code opened twice");
            ensure!(host.status()?.state == "locked", "a used code opened something");
            Ok(())
        });
    };
    let code = |index: usize| codes.get(index).map_or("", String::as_str);
    once("over ssh", code(0), &|code| host.typed_lets_in(PAM, code));
    once("at the console", code(1), &|code| at_console(host, code));
    once("for an ordinary user's su", code(2), &|code| {
        let line = format!("echo '{code}' | runuser -u nobody -- su breakglass -c 'echo in' 2>/dev/null | grep -o in");
        becomes(&line)
    });
}

/// Whether a command line of root's printed `in`.
fn becomes(line: &str) -> Result<bool> {
    let output = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == "in"))
}

/// Copies a file there and looks whether it has arrived.
fn copies(host: &Host, program: &str) -> Result<bool> {
    let source = host.path("copied");
    fs::write(&source, "copied")?;
    let arrived = Path::new("/home/breakglass").join(format!("copied-by-{program}"));
    let _ = fs::remove_file(&arrived);
    // ssh's options are theirs, too.
    let ssh = host.ssh(PAM, &host.key());
    let mut command = Command::new(program);
    command.args(ssh.get_args()).env_remove("SSH_AUTH_SOCK");
    let batch = host.path("batch");
    fs::write(&batch, format!("put {} {}\n", source.display(), arrived.display()))?;
    match program {
        "sftp" => command.arg("-b").arg(&batch).arg("127.0.0.1"),
        _ => command.arg(&source).arg(format!("127.0.0.1:{}", arrived.display())),
    };
    let output = command.output()?;
    ensure!(output.status.success() == arrived.exists(), "{}", said(&output));
    Ok(arrived.exists())
}

/// Logs in at a console: agetty and login on a serial line, and somebody at the other end of the wire.
fn at_console(host: &Host, password: &str) -> Result<bool> {
    let (console, far_end) = wired_ports()?;
    shell(&format!(
        "systemd-run --quiet --collect --unit=console --property=StandardInput=tty --property=TTYPath=/dev/{console} \
         --property=TTYVHangup=yes --property=TTYReset=yes /sbin/agetty --local-line 115200 {console} vt100"
    ))?;
    let mut socat = Command::new("socat");
    socat.args(["-", &format!("FILE:/dev/{far_end},b115200,raw,echo=0,clocal=1")]);
    let mut terminal = Terminal::start_piped(&host.run, &mut socat)?;
    let result = log_in(&mut terminal, password);
    shell("systemctl stop console")?;
    result.with_context(|| format!("seen: {}", String::from_utf8_lossy(&terminal.seen())))
}

fn log_in(terminal: &mut Terminal, password: &str) -> Result<bool> {
    // In case that what it said came before somebody listened.
    terminal.send("\r")?;
    terminal.expect_within("login: ", SOON)?;
    terminal.send(format!("{ACCOUNT}\r"))?;
    terminal.expect_within("assword: ", SOON)?;
    terminal.send(format!("{password}\r"))?;
    // Either a shell or login's own words. What is typed ahead login throws away.
    let seen = poll::until("the console to answer", SOON, || {
        let seen = String::from_utf8_lossy(&terminal.seen()).into_owned();
        Ok(["$ ", "ncorrect", "failure"].iter().any(|answer| seen.contains(answer)).then_some(seen))
    })?;
    if !seen.contains("$ ") {
        return Ok(false);
    }
    terminal.send("tty; echo i''n\r")?;
    terminal.expect_within("/dev/ttyS", SOON)?;
    terminal.expect_within("\nin", SOON)?;
    Ok(true)
}

/// The two serial ports of the guest that are wired to each other.
fn wired_ports() -> Result<(String, String)> {
    let ports = shell(
        "for port in /sys/class/tty/ttyS*; do case $(readlink -f $port) in /sys/devices/pci*) basename $port;; esac; done",
    )?;
    let mut ports = ports.lines().map(str::to_owned);
    ports.next().zip(ports.next()).context("the guest has no two serial ports that are wired to each other")
}

/// Whether the account's own service manager starts.
fn manager_starts(host: &Host) -> Result<bool> {
    let unit = format!("user@{}.service", host.uid);
    let started = Command::new("systemctl").args(["start", &unit]).output()?;
    shell("systemctl reset-failed")?;
    Ok(started.status.success())
}

fn terminal_works(host: &Host) -> Result<bool> {
    let mut ssh = host.ssh(PAM, &host.key());
    ssh.args(["-tt", "127.0.0.1"]);
    let mut terminal = Terminal::start_piped(&host.run, &mut ssh)?;
    terminal.expect_within("$", SOON)?;
    terminal.send("sudo id -un; exit\n")?;
    terminal.expect_within("\nroot", SOON)?;
    terminal.finish(SOON)?;
    Ok(true)
}

/// A connection with a master, as `ControlMaster` keeps it.
struct Multiplexed {
    master: Child,
    socket: String,
}

impl Multiplexed {
    fn start(host: &Host) -> Result<Self> {
        let socket = host.path("master").display().to_string();
        let mut ssh = host.ssh(PAM, &host.key());
        ssh.args(["-o", "ControlMaster=yes", "-o", &format!("ControlPath={socket}"), "-N", "127.0.0.1"]);
        let master = ssh.stdin(Stdio::null()).spawn().context("cannot run ssh")?;
        let this = Self { master, socket };
        poll::until_true("the master's socket", SOON, || Ok(Path::new(&this.socket).exists()))?;
        Ok(this)
    }

    /// Runs something in a new channel of the connection, and never in a connection of its own.
    fn channel(&self, host: &Host) -> Result<String> {
        let mut ssh = host.ssh(PAM, Path::new("/nonexistent"));
        ssh.args(["-o", &format!("ControlPath={}", self.socket), "127.0.0.1", "echo in"]);
        Ok(String::from_utf8_lossy(&ssh.output()?.stdout).into_owned())
    }

    fn ended(mut self, host: &Host) -> Result<()> {
        let alive = poll::until("the connection to end", SOON, || Ok(self.master.try_wait()?)).is_err();
        let channel = self.channel(host)?;
        let _ = self.master.kill();
        self.master.wait()?;
        ensure!(channel.is_empty(), "a new channel came up");
        ensure!(!alive, "the connection lives on");
        Ok(())
    }
}

/// cron wakes at full minutes; one is made to come soon.
fn cron_is_refused() -> Result<()> {
    let before = (machine::boot_ns()?, shell("date +%s")?.trim().parse::<u64>()?);
    fs::write(CRON_FILE, format!("* * * * * {ACCOUNT} touch {CRON_PROOF}\n"))?;
    shell(&format!("date --set @{}; systemctl restart cron", (before.1 / 60 + 1) * 60 - 2))?;
    // Long enough for the minute after this one, too. By name: of a child that has ended the journal no longer finds the unit.
    let tried = poll::until("cron to try", SOON * 2, || {
        let said = shell("journalctl --no-pager -o cat -t cron -t CRON -n 20")?;
        Ok((said.contains("Authentication failure") || Path::new(CRON_PROOF).exists()).then_some(said))
    });
    fs::remove_file(CRON_FILE)?;
    let passed = (machine::boot_ns()? - before.0) / 1_000_000_000;
    shell(&format!("date --set @{}; systemctl restart cron", before.1 + passed))?;
    let said = tried?;
    ensure!(!Path::new(CRON_PROOF).exists(), "cron ran the job: {said}");
    Ok(())
}

fn logins_are_recorded(host: &Host) -> Result<()> {
    let logins = poll::until("logins of every kind", SOON, || {
        let events = host.events()?.into_iter();
        let logins: Vec<Login> = events
            .filter_map(|event| match event.body {
                Some(Body::Login(login)) => Some(login),
                _ => None,
            })
            .collect();
        let of = |service: &str| logins.iter().any(|login| login.service == service);
        Ok((of("sshd") && of("login") && of("su")).then_some(logins))
    })?;
    let by_key = logins.iter().filter(|login| login.method == "publickey").collect::<Vec<_>>();
    ensure!(by_key.len() >= 4, "{} logins by key", by_key.len());
    ensure!(by_key.iter().all(|login| login.operator == OPERATOR), "{by_key:?}");
    let typed = logins.iter().any(|login| login.method.starts_with("keyboard-interactive"));
    ensure!(typed, "the code over ssh is not there");
    Ok(())
}
