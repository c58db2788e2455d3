//! The demonstration: once all the way through on this machine, then what security sees of it.

#![forbid(unsafe_code)]

use std::{
    io::IsTerminal,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Ring, Session, event::Body};
use breakglass_tests::{
    account::PROMPT_SHOWN,
    machine::{self, Need},
    poll, remains,
    stack::{OPERATOR, Options, Stack},
    terminal::Terminal,
    undo,
};
use clap::Parser;

/// Breaks the glass on this machine, works in it, closes it, and shows what security sees. Leaves nothing behind.
#[derive(Parser)]
struct Arguments {
    /// Leave everything running to try by hand, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

const PASSWORD: &str = "correct-horse-battery-staple";
const REASON: &str = "checkout fails: the database refuses connections, SSO is down";

/// Window in which the replay is shown.
const WINDOW: (usize, usize) = (80, 24);

fn main() -> ExitCode {
    let result = demo(&Arguments::parse());
    undo::stay_if_interrupted();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<()> {
    for need in [Need::Root, Need::Ssh, Need::Sudo, Need::Bpf, Need::Program("vi"), Need::Program("perl")] {
        if let Some(reason) = need.missing() {
            anyhow::bail!("the demonstration cannot run here: {reason}");
        }
    }
    let swept = undo::sweep()?;
    if swept > 0 {
        println!("took back what {swept} interrupted run(s) had left behind");
    }
    let style = Style { color: std::io::stdout().is_terminal() };
    let options = Options { sudo_password: Some(PASSWORD.into()), ..Options::default() };

    style.title("On this machine: collector, agent, an account and an sshd of their own");
    let stack = style.step("collector and agent run, the kernel programs are loaded", || Stack::start(options))?;
    let status = stack.status()?;
    let reason = status.tier_reason.split(": ").next().unwrap_or_default();
    style.note(&format!("tier {}{}{reason}", status.tier, if reason.is_empty() { "" } else { ": " }));
    style.note(&format!("account {} is {}", status.account, status.state));
    style.step("ssh with the operator's key is refused", || expect_refused(&stack))?;

    style.title("The operator");
    style.command(&format!("breakglass open {} --reason '{REASON}' --ttl 10m", stack.host()));
    let (mut terminal, to_prompt) = style.step("signed, verified, logged in", || break_glass(&stack))?;
    style.note(&format!("from the command to the shell's prompt: {:.0} ms", to_prompt.as_secs_f64() * 1000.0));
    style.step("a short incident: pipeline, sudo, password, editor, interpreter", || incident(&mut terminal))?;
    style.command(&format!("breakglass close {}", stack.host()));
    let session = style.step("account locked, every process of the session dead", || close(&stack, &mut terminal))?;
    let closed = session.closed.clone().unwrap_or_default();
    style.note(&format!("{} processes ended in {:.1} ms", closed.killed, closed.took_us as f64 / 1000.0));
    style.step("ssh with the operator's key is refused again", || expect_refused(&stack))?;

    style.title("Security");
    review(&style, &stack, &session)?;
    if arguments.keep {
        return keep(&style, &stack);
    }
    style.step("everything taken back", || {
        drop(stack);
        Ok(())
    })
}

/// Runs `breakglass open` at a terminal as a person would; it goes on into ssh by itself.
fn break_glass(stack: &Stack) -> Result<(Terminal, Duration)> {
    let mut open = stack.breakglass();
    open.args(["open", stack.host(), "--reason", REASON, "--ttl", "10m"]).env("TERM", "xterm");
    let start = Instant::now();
    let mut terminal = Terminal::start(&stack.run, &open)?;
    terminal.expect(PROMPT_SHOWN)?;
    Ok((terminal, start.elapsed()))
}

fn incident(terminal: &mut Terminal) -> Result<()> {
    terminal.ask("ps -e -o comm= | sort | uniq -c | sort -rn | head -n 3", PROMPT_SHOWN)?;
    terminal.ask("sudo tail -n 1 /etc/shadow | cut -d: -f1", "password for")?;
    terminal.ask(PASSWORD, PROMPT_SHOWN)?;
    terminal.ask("vi pool.conf", "[New")?;
    // Waiting for the screen: an editor that has more to read does not paint.
    terminal.send("i[pool]\rmax_connections = 400")?;
    terminal.expect("= 400")?;
    terminal.ask("\x1b:wq", "written")?;
    terminal.expect(PROMPT_SHOWN)?;
    terminal.ask("perl -lne 'print eval'", "")?;
    terminal.ask("400 * 1.5", "600")?;
    terminal.ask("\x04", PROMPT_SHOWN)?;
    terminal.ask("nohup setsid sleep 3600 >/dev/null 2>&1 &", PROMPT_SHOWN)
}

fn close(stack: &Stack, terminal: &mut Terminal) -> Result<Session> {
    stack.close()?;
    poll::until_true("every process of the session to be dead", poll::SOON, || {
        Ok(machine::processes_of(stack.account.uid).is_empty())
    })?;
    terminal.finish(poll::SOON)?;
    let newest = stack.query()?.sessions()?.into_iter().next().context("the collector knows no session")?;
    stack.collected(&newest.id)
}

fn expect_refused(stack: &Stack) -> Result<()> {
    let mut ssh = std::process::Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ])
    .args(["-o", "IdentitiesOnly=yes", "-p", &stack.sshd.port.to_string(), "-l", &stack.account.name, "-i"])
    .arg(stack.key())
    .args(["127.0.0.1", "true"])
    .env_remove("SSH_AUTH_SOCK");
    let output = ssh.output()?;
    ensure!(output.status.code() == Some(255), "the key was let in");
    Ok(())
}

fn review(style: &Style, stack: &Stack, session: &Session) -> Result<()> {
    // The command takes the end of an id as well; its beginning is a time, and much the same for all of a day.
    let short = session.id.get(session.id.len().saturating_sub(8)..).unwrap_or(&session.id);
    for arguments in [&["sessions"][..], &["show", &session.id], &["search", "max_connections"]] {
        style.command(&format!("breakglass {}", arguments.join(" ").replace(&session.id, short)));
        style.block(&stack.reviewed(arguments)?);
    }
    style.command(&format!("breakglass replay {short}"));
    style.frame(&screen_before_editor(&stack.replay_raw(&session.id)?)?);
    counts(style, stack, session)?;
    prove(style, stack, &session.id, short)?;
    let places = remains::places(&stack.path("collector"), PASSWORD.as_bytes())?;
    ensure!(places.is_empty(), "the password lies in {}", places.join(", "));
    style.note(&format!(
        "the password is nowhere in the record: {} keystrokes, those in the editor included, are a number and nothing else",
        session.withheld_bytes
    ));
    Ok(())
}

/// Signs the session off, takes its evidence away, and verifies it with public keys alone; then once more with one bit changed.
fn prove(style: &Style, stack: &Stack, session: &str, short: &str) -> Result<()> {
    stack.compared(session)?;
    let (reviewer, host_key) = (stack.make_reviewer()?, stack.path("state/keys/host-key.pub"));
    let (reviewer, host_key) = (reviewer.display().to_string(), host_key.display().to_string());
    style.command(&format!("breakglass review {short} --verdict ok --note 'pool raised, as agreed'"));
    let note = "pool raised, as agreed";
    style.block(&stack.reviewed(&["review", session, "--verdict", "ok", "--note", note, "-i", &reviewer])?);
    let file = stack.path("evidence.bge");
    let name = file.display().to_string();
    style.command(&format!("breakglass export {short} --evidence evidence.bge"));
    stack.reviewed(&["export", session, "--evidence", &name])?;
    style.command("breakglass verify evidence.bge --host-key host-key.pub --log-key log.pub --reviewers reviewers");
    let (log_key, reviewers) = (stack.log_key()?, stack.reviewers().display().to_string());
    let keys = ["--host-key", &host_key, "--log-key", &log_key, "--reviewers", &reviewers];
    let said = stack.reviewed(&[&["verify", &name][..], &keys].concat())?;
    style.block(&checks(&said));
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("an empty file")? ^= 1;
    std::fs::write(&file, bytes)?;
    let changed = stack.breakglass().args(["verify", &name]).args(keys).output()?;
    ensure!(changed.status.code() == Some(1), "a changed bit went unnoticed");
    let said = String::from_utf8_lossy(&changed.stdout).into_owned();
    let failed = said.lines().find(|line| line.trim_start().starts_with("FAILED")).unwrap_or_default().trim();
    style.note(&format!("with one bit changed: {failed}"));
    Ok(())
}

/// The verdict and the checks of a report, without the rest.
fn checks(report: &str) -> String {
    let is_check =
        |line: &&str| ["proved", "not proved", "FAILED"].iter().any(|word| line.trim_start().starts_with(word));
    let lines: Vec<&str> = report.lines().take(1).chain(report.lines().filter(is_check)).collect();
    lines.join("\n")
}

/// The screen as it was when the editor took it over.
fn screen_before_editor(raw: &[u8]) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(raw);
    let before = text.split("\x1b[?1049h").next().unwrap_or_default();
    let mut terminal = avt::Terminal::new(WINDOW.0, WINDOW.1)?;
    terminal.feed(before);
    let mut lines: Vec<String> =
        terminal.screen().visible_lines().map(|line| line.text().trim_end().to_owned()).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    Ok(lines)
}

/// What the kernel says that it produced for the session, against what the collector received.
fn counts(style: &Style, stack: &Stack, session: &Session) -> Result<()> {
    let closed = session.closed.clone().unwrap_or_default();
    let events = stack.query()?.events(&session.id)?;
    for (ring, name) in [(Ring::Audit, "audit"), (Ring::Bulk, "terminal")] {
        let origins = events.iter().filter_map(|recorded| recorded.event.as_ref()?.origin.as_ref());
        let received: u64 = origins.filter(|origin| origin.ring == ring as i32).map(|o| u64::from(o.more) + 1).sum();
        let of = |counts: &[u64]| counts.get(ring as usize).copied().unwrap_or_default();
        style.note(&format!(
            "{name} records of the session: the kernel produced {}, the collector received {received}, missing {}",
            of(&closed.produced),
            of(&closed.missing)
        ));
    }
    let gaps = events.iter().filter(|e| matches!(e.event.as_ref().and_then(|e| e.body.as_ref()), Some(Body::Gap(_))));
    ensure!(gaps.count() == 0, "the record has a gap");
    Ok(())
}

fn keep(style: &Style, stack: &Stack) -> Result<()> {
    style.title("Yours to try, until Ctrl-C");
    println!("  export BREAKGLASS_CONFIG={}", stack.path("operator/config.toml").display());
    println!("  export PATH={}:$PATH", stack.binaries.cli.parent().context("a program in no folder")?.display());
    println!(
        "  breakglass open {} --reason 'having a look'      # as {OPERATOR}; sudo takes '{PASSWORD}'",
        stack.host()
    );
    println!("  breakglass sessions; breakglass show --follow SESSION; breakglass replay SESSION");
    loop {
        thread::park();
    }
}

/// How the demonstration prints.
struct Style {
    color: bool,
}

impl Style {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn title(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    fn command(&self, text: &str) {
        println!("\n  {} {}", self.paint("2", "$"), self.paint("36", text));
    }

    fn note(&self, text: &str) {
        println!("    {}", self.paint("2", text));
    }

    fn block(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("  {line}");
        }
    }

    fn frame(&self, lines: &[String]) {
        println!("  ┌{}┐", "─".repeat(WINDOW.0));
        for line in lines {
            println!("  │{line}{}│", " ".repeat(WINDOW.0.saturating_sub(line.chars().count())));
        }
        println!("  └{}┘", "─".repeat(WINDOW.0));
    }

    /// Does something and says what, and how long it took.
    fn step<T>(&self, what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = action();
        let (mark, code) = if result.is_ok() { ("✓", "32") } else { ("✗", "31") };
        println!("  {} {what:<66}{:>6.2} s", self.paint(code, mark), start.elapsed().as_secs_f64());
        result
    }
}
