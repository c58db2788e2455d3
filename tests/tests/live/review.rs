//! What the security team sees, by the command that it uses.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::SearchKind;
use breakglass_tests::{
    account::PROMPT_SHOWN,
    poll,
    stack::{OPERATOR, Options, Stack},
    terminal::Terminal,
};

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "review::lists_and_shows", needs: SESSION, company: Company::Others, run: lists_and_shows },
    Test {
        name: "review::what_a_session_wrote_is_neutralised",
        needs: SESSION,
        company: Company::Others,
        run: neutralised,
    },
    Test {
        name: "review::search_finds_what_was_run_typed_and_shown",
        needs: SESSION,
        company: Company::Others,
        run: search,
    },
    Test { name: "review::follows_an_open_session", needs: SESSION, company: Company::Others, run: follow },
    Test { name: "review::json_on_either_side", needs: SESSION, company: Company::Others, run: json },
    Test { name: "review::exit_codes", needs: SESSION, company: Company::Others, run: exit_codes },
];

fn lists_and_shows() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("the database is on fire", "10m")?;
        stack.ssh_run(&opened, "ls /usr/games /nonexistent; true")?;
        stack.wait_until_acknowledged()?;
        let open = stack.reviewed(&["sessions", "--open", "--json"])?;
        ensure!(open.contains(&opened.session), "not among the open ones: {open}");
        stack.close_and_collect(&opened)?;
        let open = stack.reviewed(&["sessions", "--json"])?;
        ensure!(open.contains(&opened.session), "not among all: {open}");
        for text in [stack.reviewed(&["show", &opened.session])?, stack.reviewed(&["show", &opened.session, "--json"])?]
        {
            for word in [OPERATOR, "the database is on fire", "/nonexistent"] {
                ensure!(text.contains(word), "{word:?} is not in: {text}");
            }
        }
        let hosts = stack.reviewed(&["hosts"])?;
        ensure!(hosts.contains(stack.host()), "the host is not in: {hosts}");
        Ok(())
    })
}

fn neutralised() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("escapes", "10m")?;
        let mut terminal = stack.login(&opened)?;
        terminal.ask(&format!("{} odd", stack.probe().display()), PROMPT_SHOWN)?;
        terminal.ask("printf '\\033]0;owned\\007\\033[2J marker-on-screen\\n'", PROMPT_SHOWN)?;
        terminal.send("exit\n")?;
        terminal.finish(poll::SOON)?;
        stack.close_and_collect(&opened)?;
        // People must not be misled about the order of letters either; programs get text as it is, escaped as JSON has it.
        for (arguments, for_people) in [
            (&["show", &opened.session][..], true),
            (&["search", "marker-on-screen"], true),
            (&["search", "right to left"], true),
            (&["show", &opened.session, "--json"], false),
            (&["events", &opened.session], false),
        ] {
            let printed = stack.reviewed(arguments)?;
            ensure!(!printed.trim().is_empty(), "{arguments:?} prints nothing");
            let misleads = |c: &char| for_people && ('\u{202a}'..='\u{202e}').contains(c);
            let bad = printed.chars().find(|c| (c.is_control() && *c != '\n') || misleads(c));
            ensure!(bad.is_none(), "{arguments:?} prints {bad:?}");
        }
        Ok(())
    })
}

fn search() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("search", "10m")?;
        let mut terminal = stack.login(&opened)?;
        terminal.ask("/bin/echo needle-in-argv", PROMPT_SHOWN)?;
        terminal.ask("printf 'needle-%s-screen\\n' on", PROMPT_SHOWN)?;
        terminal.ask(": needle-typed", PROMPT_SHOWN)?;
        let mut query = stack.query()?;
        for (text, kind) in [
            ("needle-in-argv", SearchKind::Command),
            ("needle-on-screen", SearchKind::Screen),
            ("NEEDLE-TYPED", SearchKind::Typed),
        ] {
            poll::until_true(&format!("{text} to be found"), poll::SOON, || {
                Ok(query.search(text)?.iter().any(|hit| hit.kind == kind as i32 && hit.session == opened.session))
            })?;
        }
        ensure!(query.search("needle-that-nobody-lost")?.is_empty(), "something was found that is not there");
        let printed = stack.reviewed(&["search", "needle-in-argv"])?;
        ensure!(printed.contains("needle-in-argv"), "not in: {printed}");
        Ok(())
    })
}

fn follow() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        // At once: the opening may not have reached the collector yet.
        let opened = stack.open("follow me", "10m")?;
        let mut show = stack.breakglass();
        show.args(["show", &opened.session, "--follow"]);
        let mut watching = Terminal::start_piped(&stack.run, &mut show)?;
        for number in 1..=3 {
            stack.ssh_run(&opened, &format!("/bin/echo follow-{number}"))?;
            watching.expect_within(&format!("follow-{number}"), Duration::from_secs(5))?;
        }
        stack.close()?;
        watching.finish(poll::SOON).context("it follows on after the end")?;
        Ok(())
    })
}

/// `--json` means the same before a command and behind it.
fn json() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let host = stack.host().to_owned();
        let opened = stack.open("json", "10m")?;
        stack.ssh_run(&opened, "true")?;
        stack.wait_until_acknowledged()?;
        let lines: [&[&str]; 9] = [
            &["status", &host],
            &["hosts"],
            &["sessions"],
            &["show", &opened.session],
            &["events", &opened.session],
            &["search", "json"],
            &["alerts"],
            &["acts"],
            &["close", &host],
        ];
        for line in lines {
            for words in [[&["--json"], line].concat(), [line, &["--json"]].concat()] {
                let output = stack.breakglass().args(&words).output()?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                // A second close is refused, and nothing is found by some: that is told by an exit code, and by JSON or nothing.
                for one in said.lines() {
                    let value: serde_json::Value =
                        serde_json::from_str(one).with_context(|| format!("{words:?} prints {one:?}"))?;
                    ensure!(value.is_object(), "{words:?} prints {one}");
                }
                let expected = !matches!(line[0], "search" | "alerts" | "acts");
                ensure!(!expected || !said.is_empty(), "{words:?} prints nothing ({})", output.status);
            }
        }
        Ok(())
    })
}

fn exit_codes() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let code = |arguments: &[&str]| anyhow::Ok(stack.breakglass().args(arguments).output()?.status.code());
        ensure!(code(&["show", "00000000-0000-0000-0000-000000000000"])? == Some(4), "no such session");
        ensure!(code(&["search", "nothing-like-this"])? == Some(4), "nothing found");
        ensure!(code(&["no-such-command"])? == Some(2), "usage");
        ensure!(code(&["sessions"])?.is_some_and(|code| code == 0 || code == 4), "no sessions yet");
        stack.collector.stop()?;
        let unreachable = stack.breakglass().arg("hosts").output()?;
        ensure!(unreachable.status.code() == Some(5), "collector down: {}", unreachable.status);
        Ok(())
    })
}
