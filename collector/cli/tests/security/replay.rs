//! Replay into a pipe and on a terminal.

use std::{io::Write, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    fake::{Answers, Fake},
    run::{breakglass, printed, run},
    sample::{self, ID, OPEN_ID, SCREEN},
    terminal::OnTerminal,
};

#[test]
fn exact_bytes_into_a_pipe() {
    let fake = Fake::start(sample::answers());
    for args in [&["replay", ID][..], &["replay", ID, "--raw"], &["replay", ID, "--terminal", "1"]] {
        let output = run(&fake, args);
        assert_eq!(output.stdout, SCREEN.concat(), "{args:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(message, "This replay is not whole: 1 gap, 4.1 KB known to be missing.\n");
    }
    assert_eq!(run(&fake, &["replay", ID, "--terminal", "2"]).stdout, b"");
}

#[test]
fn sixteen_megabytes_arrive_whole() {
    let screen: Vec<u8> = (0..16 * 1024 * 1024_u32).map(|n| (n % 251) as u8).collect();
    let piece = |(n, data): (usize, &[u8])| sample::item(n as i64, sample::output(data));
    let replay = screen.chunks(60_000).enumerate().map(piece).collect();
    let fake = Fake::start(Answers { replay, ..sample::answers() });
    assert!(run(&fake, &["replay", ID]).stdout == screen);
}

#[test]
fn typed_lines_and_commands_in_between() {
    let fake = Fake::start(sample::answers());
    let output = run(&fake, &["replay", ID, "--input", "--commands"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["\n< 12:00:00  café\n$ 12:00:00  'café'\n", "\n< 12:00:00  (12 bytes typed unseen)\n"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[test]
fn asciicast_and_json() {
    let fake = Fake::start(sample::answers());
    let cast = printed(&fake, &["replay", ID, "--asciicast", "--input"]);
    let lines: Vec<serde_json::Value> = cast.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["version"], &lines[0]["term"]["cols"]), (&3.into(), &80.into()));
    let shown: String = lines[1..].iter().filter(|line| line[1] == "o").filter_map(|line| line[2].as_str()).collect();
    assert_eq!(shown, String::from_utf8_lossy(&SCREEN.concat()));
    assert!(lines.iter().any(|line| line[1] == "m" && line[2] == "'café'"));
    assert!(lines.iter().any(|line| line[1] == "i"));
    let items = printed(&fake, &["replay", ID, "--json"]);
    let first: serde_json::Value = serde_json::from_str(items.lines().next().unwrap()).unwrap();
    assert_eq!((&first["kind"], &first["output"]["data"]), (&"output".into(), &"breakglass@web1:~$ ".into()));
}

#[test]
fn follows_to_the_end() {
    let fake = Fake::start(Answers { pace: Duration::from_millis(20), ..sample::answers() });
    assert_eq!(run(&fake, &["replay", OPEN_ID, "--follow"]).stdout, SCREEN.concat());
    let mut terminal = OnTerminal::start(breakglass(&fake, "config.toml").args(["replay", OPEN_ID, "--follow"]), 80);
    terminal.until("end of the recording");
    assert_eq!(terminal.wait().code(), Some(0));
    assert_only_draws(&terminal.shown);
}

#[test]
fn no_terminal_is_nothing_found() {
    let mut answers = sample::answers();
    answers.sessions.iter_mut().for_each(|session| session.terminals.clear());
    let fake = Fake::start(answers);
    assert_eq!(run(&fake, &["replay", ID]).status.code(), Some(4));
}

/// Nothing that the terminal would answer, or that outlives the replay.
fn assert_only_draws(shown: &[u8]) {
    for bad in [&b"\x1b]"[..], b"\x1b[6n", b"\x05", b"\xff"] {
        assert!(
            !shown.windows(bad.len()).any(|window| window == bad),
            "{bad:?} in {:?}",
            String::from_utf8_lossy(shown)
        );
    }
}

#[test]
fn plays_on_a_terminal_and_gives_it_back() {
    let fake = Fake::start(sample::answers());
    let mut terminal = OnTerminal::start(breakglass(&fake, "config.toml").args(["replay", ID, "--speed", "100"]), 60);
    terminal.until("end of the recording");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(terminal.is_cooked());
    let text = String::from_utf8_lossy(&terminal.shown).into_owned();
    assert!(text.contains("Recorded at 80×24, and this window is 60×24"), "{text:?}");
    assert!(text.contains("First of 2 terminals"), "{text:?}");
    assert!(text.contains("café\r\nbash: café: command not found\r\n\x1b[1;31mred\x1b[0m \r\n"), "{text:?}");
    assert!(text.contains("12 terminal records missing"), "{text:?}");
    assert!(text.contains("\x1b[?25h"), "{text:?}");
    assert_only_draws(&terminal.shown);
}

/// A replay that waits for long after its first piece, on the alternate screen.
fn waiting() -> Fake {
    let replay =
        vec![sample::item(0, sample::output(b"\x1b[?1049hhere")), sample::item(3_600_000, sample::output(b"later"))];
    Fake::start(Answers { replay, ..sample::answers() })
}

fn wait_on_terminal(fake: &Fake) -> OnTerminal {
    OnTerminal::start(breakglass(fake, "config.toml").args(["replay", ID, "--max-idle", "1h"]), 80)
}

#[test]
fn keys_act_and_q_ends() {
    let fake = waiting();
    let mut terminal = wait_on_terminal(&fake);
    terminal.until("here");
    assert!(!terminal.is_cooked());
    // A cursor key and an answer of the terminal's that contain a q are no keys.
    terminal.master.write_all(b"\x1b[A\x1bP1$r0 q\x1b\\ ").unwrap();
    terminal.master.write_all(b"+++ q").unwrap();
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(terminal.is_cooked());
    terminal.until("\x1b[?1049l");
    assert!(!String::from_utf8_lossy(&terminal.shown).contains("later"));
}

#[test]
fn faster_is_faster() {
    let fake = waiting();
    let mut terminal = wait_on_terminal(&fake);
    terminal.until("here");
    // An hour at 1024 times the speed is three and a half seconds.
    terminal.master.write_all(b"++++++++++").unwrap();
    terminal.until("later");
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn signals_give_the_terminal_back() {
    let fake = waiting();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let mut terminal = wait_on_terminal(&fake);
        terminal.until("here");
        kill(Pid::from_raw(terminal.child.id() as i32), signal).unwrap();
        assert_eq!(terminal.wait().code(), Some(code));
        assert!(terminal.is_cooked());
        terminal.until("\x1b[?1049l");
    }
}
