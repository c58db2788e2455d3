//! What people and programs are shown.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    fake::{Answers, Fake},
    run::{breakglass, printed, run},
    sample::{self, ID, OPEN_ID},
    terminal::OnTerminal,
};

/// How long a command that prints to nobody may take to notice.
const QUIET_EXIT: Duration = Duration::from_secs(20);

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn assert_harmless(text: &str) {
    let strange = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
    assert_eq!(strange, None, "in {text}");
}

#[test]
fn hosts_as_table_and_json() {
    let fake = Fake::start(sample::answers());
    let table = printed(&fake, &["hosts"]);
    assert!(table.starts_with("HOST"), "{table}");
    assert!(
        table.contains("web1        connected") && table.contains("b0a7d211") && table.contains("1,234,567"),
        "{table}"
    );
    let hosts = json_lines(&printed(&fake, &["hosts", "--json"]));
    assert_eq!(hosts.len(), 3);
    assert_eq!(hosts[2]["type"], "host");
    assert_eq!(hosts[2]["connected"], false);
    assert_eq!(hosts[2]["last_seen_time"], "2026-11-22T12:00:00.000000000Z");
}

#[test]
fn sessions_as_table_and_json() {
    let fake = Fake::start(sample::answers());
    let table = printed(&fake, &["sessions"]);
    assert_harmless(&table);
    let row = table.lines().find(|line| line.starts_with("5f2c9a1e")).unwrap();
    for part in [
        "web1",
        "alice@example.org",
        "2026-11-22 12:00",
        "14m29s",
        "  9  operator   ",
        "     1    12  ",
        "SSO unreachable",
    ] {
        assert!(row.contains(part), "{part} in {row}");
    }
    assert_eq!(printed(&fake, &["sessions", "--open"]).lines().count(), 2);
    let sessions = json_lines(&printed(&fake, &["--json", "sessions"]));
    assert_eq!(sessions[1]["id"], ID);
    assert_eq!(sessions[1]["opened"]["reason"], "database down after migration,\u{1b}]0;x\u{7} SSO unreachable");
    assert_eq!(sessions[0]["closed_time"], Value::Null);
    assert_eq!(printed(&fake, &["sessions", "--host", "nowhere"]), "");
}

#[test]
fn show_tells_who_why_and_what() {
    let fake = Fake::start(sample::answers());
    let text = printed(&fake, &["show", "5f2c9a1e"]);
    assert_harmless(&text);
    for part in [
        "Session 5f2c9a1e  019a8c3e-7f00-7c3e-8a01-9e3f5f2c9a1e",
        "operator   alice@example.org",
        "ticket     INC-4711",
        "account    breakglass (uid 990)",
        "closed     2026-11-22 12:14:29 UTC, after 14m29s",
        "ended      by operator (alice@example.org); 3 processes killed in 12ms",
        "9,180 kernel records, 12 missing",
        "    2  12:00:04  breakglass  ok         212ms  journalctl -u postgresql -n 50",
        "    3  12:00:04  breakglass  exit 1     220ms  grep -i 'fatal error'",
        "in /root\n    6  12:01:01  root        ok          3.2s  psql -c 'DROP TABLE customers_old;'",
        "SIGKILL      45s  '[kworker/0:1]'  [/tmp/.x/miner]",
        "printf $'\\x1b[2J\\x1b[31mroot ok\\n' $'\\xff\\xfe' $'invoice\\xe2\\x80\\xaefdp.exe'",
        "uid 33      ?                 sleep infinity",
        "    !  12:01:30  exec-from-tmp: /tmp/.x/miner was run by root",
        "    !  12:01:40  gap: 12 terminal records missing, 4.1 KB of terminal (ring-full)",
        "1 failed exec not shown; --all shows them.",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    let order: Vec<usize> = ["exec-from-tmp", "gap:", "printf"].iter().map(|part| text.find(part).unwrap()).collect();
    assert!(order.is_sorted(), "notices are among the commands by time: {text}");
    let all = printed(&fake, &["show", "5f2c9a1e", "--all"]);
    assert!(
        all.contains("not run           /usr/local/bin/psql: ENOENT: No such file or directory (2 times)"),
        "{all}"
    );
}

#[test]
fn show_as_json_is_lossless() {
    let fake = Fake::start(sample::answers());
    let lines = json_lines(&printed(&fake, &["show", ID, "--json"]));
    let types: Vec<&str> = lines.iter().filter_map(|line| line["type"].as_str()).collect();
    assert_eq!(types.iter().filter(|t| **t == "command").count(), 8);
    assert_eq!((types[0], types.iter().filter(|t| **t == "event").count()), ("session", 2));
    let hostile = lines.iter().find(|line| line["number"] == 8).unwrap();
    assert_eq!(hostile["exec"]["argv"][1], "\u{1b}[2J\u{1b}[31mroot ok\n");
    assert_eq!(hostile["exec"]["argv"][2]["base64"], "//4=");
    assert_eq!(hostile["time"], "2026-11-22T12:02:00.000000000Z");
    assert_eq!(hostile["boot_ns"], 86_520_000_000_000_u64);
}

#[test]
fn an_argument_of_megabytes_is_shown_whole() {
    let long = vec![b'x'; 5 * 1024 * 1024];
    let commands = vec![sample::command(1, 1, "/", 0, "/bin/true", &[b"true", &long])];
    let fake = Fake::start(Answers { commands, ..sample::answers() });
    assert!(printed(&fake, &["show", ID]).contains(&format!("true {}\n", "x".repeat(long.len()))));
    let lines = json_lines(&printed(&fake, &["show", ID, "--json"]));
    let command = lines.iter().find(|line| line["type"] == "command").unwrap();
    assert_eq!(command["exec"]["argv"][1].as_str().map(str::len), Some(long.len()));
    // On a terminal the line is cut, and says so.
    let mut terminal = OnTerminal::start(breakglass(&fake, "config.toml").args(["show", ID]), 80);
    terminal.until("(5.2 MB; --full shows all)");
}

#[test]
fn show_follows_to_the_close() {
    // A command is told of as it starts, and again as it ends.
    let mut answers = sample::answers();
    let started =
        |c: &breakglass_api::v1::Command| breakglass_api::v1::Command { exit: None, exit_wall_ns: 0, ..c.clone() };
    answers.commands = answers.commands.iter().skip(1).take(2).flat_map(|c| [started(c), c.clone()]).collect();
    let fake = Fake::start(answers);
    let text = printed(&fake, &["show", OPEN_ID, "--follow"]);
    for part in [
        "closed     still open",
        "runs              grep -i 'fatal error'",
        "exit 1     220ms  ended: grep",
        "-  12:14:29  closed by operator (alice@example.org)",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn events_are_json_whatever_was_asked_for() {
    let fake = Fake::start(sample::answers());
    let events = json_lines(&printed(&fake, &["events", "5f2c9a1e"]));
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"]["kind"].as_str()).collect();
    assert_eq!(kinds, ["exec", "alert", "gap", "session_closed"]);
    assert_eq!(events[0]["event"]["exec"]["argv"][0]["base64"], "/w==");
    assert_eq!(printed(&fake, &["events", OPEN_ID, "--follow"]).lines().count(), 4);
    assert_eq!(printed(&fake, &["events", ID, "--kind", "alert,gap"]).lines().count(), 2);
    let refused = run(&fake, &["events", ID, "--kind", "alarm"]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && message.contains("session_closed"), "{message}");
    let fake = Fake::start(Answers { events: Vec::new(), ..sample::answers() });
    assert_eq!(run(&fake, &["events", ID]).status.code(), Some(4));
}

#[test]
fn search_groups_and_marks() {
    let fake = Fake::start(sample::answers());
    let text = printed(&fake, &["search", "drop table"]);
    assert_harmless(&text);
    assert!(text.starts_with("5f2c9a1e  web1  alice@example.org  2026-11-22 12:01:01 UTC\n"), "{text}");
    assert!(text.contains("\n  12:01:01  command 6        psql -c 'DROP TABLE customers_old;'\n"), "{text}");
    assert!(text.contains("\n\nb0a7d211  web1"), "{text}");
    assert!(text.contains("\n  12:01:04  screen ×31       DROP TABLE\n"), "{text}");
    assert!(text.contains("typed            drop table\\x1b[A users;"), "{text}");
    assert!(text.ends_with(&format!("{}\n", "x".repeat(100))), "whole into a pipe");
    let marked = printed(&fake, &["--color=always", "search", "drop table", "--kind", "command"]);
    assert!(marked.contains("psql -c '\x1b[1;4mDROP TABLE\x1b[0m customers_old;'"), "{marked:?}");
    let hits = json_lines(&printed(&fake, &["search", "drop table", "--json", "--since", "365d"]));
    assert_eq!((hits.len(), &hits[0]["kind"]), (4, &Value::from("command")));
    let output = run(&fake, &["search", "no such thing"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0));
}

#[test]
fn colours_only_where_wanted() {
    let fake = Fake::start(sample::answers());
    for args in [&["show", ID][..], &["sessions"], &["hosts"]] {
        assert!(!printed(&fake, args).contains('\x1b'), "{args:?} into a pipe");
        assert!(printed(&fake, &[&["--color", "always"], args].concat()).contains('\x1b'), "{args:?}");
    }
}

#[test]
fn a_terminal_is_coloured_and_filled_but_not_overfilled() {
    let fake = Fake::start(sample::answers());
    let shown = |command: &mut Command| {
        let mut terminal = OnTerminal::start(command, 80);
        terminal.until("5f2c9a1e");
        terminal.until("database");
        assert_eq!(terminal.wait().code(), Some(0));
        String::from_utf8(terminal.shown.clone()).unwrap()
    };
    assert!(shown(breakglass(&fake, "config.toml").env("TERM", "xterm").arg("sessions")).contains('\x1b'));
    let plain = shown(breakglass(&fake, "config.toml").env("NO_COLOR", "1").arg("sessions"));
    assert!(!plain.contains('\x1b'), "{plain:?}");
    assert!(plain.contains('…') && plain.lines().all(|line| line.chars().count() <= 80), "{plain}");
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let mut answers = sample::answers();
    answers.commands = (1..=20_000).map(|n| sample::command(n, 1, "/", 0, "/bin/true", &[b"true"])).collect();
    answers.replay = (0..20_000).map(|ms| sample::item(ms, sample::output(&[b'x'; 100]))).collect();
    let fake = Fake::start(answers);
    for args in [&["show", ID][..], &["show", ID, "--json"], &["replay", ID], &["completions", "bash"]] {
        let mut child =
            breakglass(&fake, "config.toml").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 64]).unwrap();
        let started = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""), "{args:?}");
        assert!(started.elapsed() < QUIET_EXIT);
    }
}

#[test]
fn completions_for_every_shell() {
    let fake = Fake::start(Answers::default());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(printed(&fake, &["completions", shell]).contains("replay"), "{shell}");
    }
}
