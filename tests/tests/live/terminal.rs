//! What the terminal showed is in the record byte for byte; what was typed in secret is nowhere.

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::Session;
use breakglass_tests::{
    account::PROMPT_SHOWN,
    poll, remains,
    stack::{Options, Stack},
    terminal::{Terminal, find},
};

use crate::{Company, SESSION, SUDO_SESSION, Test};

pub const TESTS: &[Test] = &[
    Test {
        name: "terminal::sixteen_megabytes_replay_exactly",
        needs: SESSION,
        company: Company::None,
        run: sixteen_megabytes,
    },
    Test { name: "terminal::a_short_day_replays_exactly", needs: SESSION, company: Company::Others, run: short_day },
    Test {
        name: "terminal::the_password_is_nowhere",
        needs: SUDO_SESSION,
        company: Company::Others,
        run: password_plain,
    },
    Test {
        name: "terminal::the_password_is_nowhere_in_nested_terminals",
        needs: SUDO_SESSION,
        company: Company::Others,
        run: password_nested,
    },
    Test {
        name: "terminal::the_password_is_nowhere_where_asterisks_are_shown",
        needs: SUDO_SESSION,
        company: Company::Others,
        run: password_asterisks,
    },
];

/// Output of the large test, bytes.
const FLOOD: usize = 16 << 20;

fn sixteen_megabytes() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("a flood", "10m")?;
        let mut terminal = stack.login(&opened)?;
        terminal.send(format!("{} flood {FLOOD}; echo fl''ood over\n", stack.probe().display()))?;
        terminal.expect_within("flood over", poll::EVENTUALLY)?;
        let seen = leave(&mut terminal)?;
        ensure!(seen.len() > FLOOD, "only {} bytes came", seen.len());
        let session = stack.close_and_collect(&opened)?;
        expect_replay(stack, &session, &seen)
    })
}

/// A pipeline, an editor that paints the screen, an interpreter, typing corrected by hand, and a window's worth of escapes.
fn short_day() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("a short day", "10m")?;
        let mut terminal = stack.login(&opened)?;
        terminal.ask("ls -l /etc | sort -k5 -n | tail -n 3; echo pipe''line", "pipeline")?;
        terminal.ask("echo wrogn\x7f\x7fng ri''ght", "right")?;
        terminal.ask("printf '\\033[31mred\\033[0m \\377\\376 raw\\n'; echo co''lour", "colour")?;
        terminal.ask("perl -e 'while (<STDIN>) { last if /quit/; print uc }'", "")?;
        terminal.ask("hello", "HELLO")?;
        terminal.ask("quit", PROMPT_SHOWN)?;
        let seen = leave(&mut terminal)?;
        let session = stack.close_and_collect(&opened)?;
        ensure!(session.input_bytes > 0, "no typed input is in the record");
        expect_replay(stack, &session, &seen)
    })
}

fn password_plain() -> Result<()> {
    password("!use_pty")
}

fn password_nested() -> Result<()> {
    password("use_pty")
}

fn password_asterisks() -> Result<()> {
    password("!use_pty, pwfeedback")
}

/// Types a password at sudo and at `read -s` while the collector cannot be reached, looks through the host's files, then lets
/// everything through and looks through the collector's, and through all that the command prints.
fn password(sudo_defaults: &'static str) -> Result<()> {
    const PASSWORD: &str = "xK9-quartz-Vm2-sphinx-7Q";
    const OPEN: &str = "this-may-be-seen-by-all";
    let options = Options { sudo_password: Some(PASSWORD.into()), sudo_defaults, relay: true, ..Options::default() };
    Stack::with(options, |stack| {
        let opened = stack.open("a password", "10m")?;
        let relay = stack.relay.as_ref().context("no relay")?;
        relay.cut();
        let mut terminal = stack.login(&opened)?;
        terminal.ask(&format!("echo {OPEN}"), PROMPT_SHOWN)?;
        terminal.ask("sudo -k; sudo id -u", "password for")?;
        terminal.ask(PASSWORD, PROMPT_SHOWN)?;
        terminal.ask("read -rs -p 'se''cret: ' typed; echo ta''ken", "secret: ")?;
        terminal.ask(PASSWORD, "taken")?;
        let seen = leave(&mut terminal)?;
        ensure!(find(&seen, PASSWORD.as_bytes()).is_none(), "the password was echoed, the test is wrong");
        let asterisks = find(&seen, "*".repeat(PASSWORD.len()).as_bytes()).is_some();
        ensure!(asterisks == sudo_defaults.contains("pwfeedback"), "the prompt is not the one to be tried");

        let state = stack.path("state");
        poll::until_true("the spool to hold what may be seen", poll::SOON, || {
            Ok(!remains::places(&state, OPEN.as_bytes())?.is_empty())
        })?;
        expect_nowhere(remains::places(&state, PASSWORD.as_bytes())?)?;

        relay.mend();
        let session = stack.close_and_collect(&opened)?;
        let kept = stack.path("collector");
        ensure!(
            !remains::places(&kept, OPEN.as_bytes())?.is_empty(),
            "what may be seen is not at the collector either"
        );
        expect_nowhere(remains::places(&kept, PASSWORD.as_bytes())?)?;
        expect_nowhere(remains::places(&state, PASSWORD.as_bytes())?)?;
        expect_not_printed(stack, &session, PASSWORD)?;

        // Twice the password and Enter at the terminal that asked; nested terminals see the same keys again.
        let typed = 2 * (PASSWORD.len() as u64 + 1);
        let right =
            if sudo_defaults == "use_pty" { session.withheld_bytes >= typed } else { session.withheld_bytes == typed };
        ensure!(right, "{} bytes are counted as withheld, {typed} were typed", session.withheld_bytes);
        expect_replay(stack, &session, &seen)
    })
}

fn expect_not_printed(stack: &Stack, session: &Session, password: &str) -> Result<()> {
    let id = session.id.as_str();
    for arguments in [
        &["show", id][..],
        &["show", id, "--json"],
        &["events", id],
        &["events", id, "--json"],
        &["replay", id, "--raw"],
        &["replay", id, "--json", "--input"],
    ] {
        let printed = stack.reviewed(arguments)?;
        ensure!(!printed.contains(password), "{arguments:?} prints the password");
    }
    ensure!(stack.query()?.search(password)?.is_empty(), "the password is found by search");
    Ok(())
}

fn expect_nowhere(places: Vec<String>) -> Result<()> {
    ensure!(places.is_empty(), "the password lies in {}", places.join(", "));
    Ok(())
}

/// Leaves the shell and gives all that the far end read.
fn leave(terminal: &mut Terminal) -> Result<Vec<u8>> {
    terminal.send("exit\n")?;
    terminal.finish(poll::EVENTUALLY)?;
    Ok(terminal.seen())
}

/// Fails unless the collector replays exactly `seen`, by the command and by the service.
pub fn expect_replay(stack: &Stack, session: &Session, seen: &[u8]) -> Result<()> {
    let outer = session.terminals.first().context("no terminal is in the record")?;
    ensure!(
        outer.output_bytes == seen.len() as u64,
        "{} bytes are recorded, {} were read",
        outer.output_bytes,
        seen.len()
    );
    for (what, replayed) in
        [("the command", stack.replay_raw(&session.id)?), ("the service", stack.query()?.output(&session.id)?)]
    {
        let different = replayed.iter().zip(seen).position(|(replayed, seen)| replayed != seen);
        ensure!(different.is_none(), "{what} replays another byte at {different:?}");
        ensure!(replayed.len() == seen.len(), "{what} replays {} bytes, {} were read", replayed.len(), seen.len());
    }
    Ok(())
}
