//! The tiers see with different eyes and must say the same: one session, recorded once in each tier that the kernel allows.

use std::collections::BTreeMap;

use breakglass_agent::config::Tier;
use breakglass_api::v1::event::Body;

use super::{
    harness::{Recording, execs, exit_of},
    terminal::Screen,
};
use crate::need_kernel;

/// Everything that goes a different way in some tier: several writes, a large one, echo, a password, a terminal in a terminal, programs that
/// fail and programs that are not there.
const SESSION: &str = "\
    printf 'name: '; read name; echo \"hello $name\"; \
    stty -echo; printf 'secret: '; read secret; stty echo; echo; \
    seq 1 3000; \
    /bin/sh -c 'exit 7'; /usr/bin/env no-such-program 2>/dev/null; \
    cd /usr; printf '\\033[31mred\\033[0m\\t\\377\\n'; echo a b c | tr a-z A-Z; \
    script -qec 'echo inside; seq 1 50' /dev/null; \
    printf 'done> '; read last";

/// What a record says, without what differs from run to run: numbers of processes and terminals, times.
#[derive(Debug, PartialEq)]
struct Said {
    /// Path, arguments, working directory and exit status, in order.
    programs: Vec<(String, Vec<String>, String, u32)>,
    failed: Vec<(String, u32)>,
    /// Of each terminal, in the order of their appearance.
    shown: Vec<Vec<u8>>,
    typed: Vec<Vec<u8>>,
    withheld: u64,
}

fn record(maximum: Tier) -> (Tier, Said, Vec<u8>) {
    let mut recording = Recording::with(|options| options.maximum_tier = maximum);
    recording.kernel().begin_session(41).unwrap();
    let mut screen = Screen::start(&mut recording, SESSION);
    screen.until(b"name: ");
    screen.type_in(b"alice\n");
    screen.until(b"secret: ");
    screen.type_in(b"correct horse\n");
    screen.until(b"done> ");
    screen.type_in(b"bye\n");
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    assert!(recording.gaps().is_empty(), "{:?}", recording.gaps());
    let tier = recording.kernel().info().tier;
    let said = said(&recording);
    recording.kernel().end_session(41).unwrap();
    (tier, said, screen.shown)
}

fn said(recording: &Recording) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let programs = execs(&recording.seen).into_iter().map(|exec| {
        let arguments = exec.argv.iter().map(|argument| text(argument)).collect();
        let exit = exit_of(&recording.seen, exec.process.unwrap().pid).map_or(u32::MAX, |exit| exit.status);
        (text(&exec.exe), arguments, text(&exec.cwd), exit)
    });
    let programs = programs.collect();
    let (mut failed, mut withheld) = (Vec::new(), 0);
    let (mut order, mut shown, mut typed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for observed in &recording.seen {
        match &observed.event.body {
            Some(Body::ExecFailed(event)) => failed.push((text(&event.filename), event.errno)),
            Some(Body::InputWithheld(event)) => withheld += event.bytes,
            Some(Body::TerminalOutput(event)) => {
                assert_eq!(event.missing, 0);
                if !order.contains(&event.terminal) {
                    order.push(event.terminal);
                }
                shown.entry(event.terminal).or_insert_with(Vec::new).extend_from_slice(&event.data);
            }
            Some(Body::TerminalInput(event)) => {
                typed.entry(event.terminal).or_insert_with(Vec::new).extend_from_slice(&event.data);
            }
            _ => {}
        }
    }
    let of = |all: &BTreeMap<u64, Vec<u8>>| -> Vec<Vec<u8>> {
        order.iter().map(|terminal| all.get(terminal).cloned().unwrap_or_default()).collect()
    };
    Said { programs, failed, shown: of(&shown), typed: of(&typed), withheld }
}

#[test]
fn every_tier_says_the_same() {
    need_kernel!();
    let mut tiers = Vec::new();
    let mut first: Option<(Tier, Said)> = None;
    for maximum in [Tier::Basic, Tier::Trace, Tier::Full] {
        let (tier, said, screen) = record(maximum);
        println!("maximum {maximum}: recorded in {tier}, {} programs, {} bytes", said.programs.len(), screen.len());
        assert!(tier <= maximum);
        assert_eq!(said.shown.first(), Some(&screen), "{tier}: the outer terminal");
        assert_eq!(said.typed.first().map(Vec::as_slice), Some(&b"alice\nbye\n"[..]), "{tier}");
        assert_eq!(said.withheld, 14, "{tier}");
        assert!(said.programs.iter().any(|program| program.3 == 7), "{tier}");
        tiers.push(tier);
        match &first {
            None => first = Some((tier, said)),
            Some((other, right)) => assert!(said == *right, "{tier} and {other} differ:\n{said:#?}\n{right:#?}"),
        }
    }
    tiers.dedup();
    // Set by the lab, whose kernels allow more.
    let more = std::env::var_os("BREAKGLASS_LAB_TIER").is_some();
    assert!(!more || tiers.len() > 1, "only {tiers:?} could be compared");
    if tiers.len() == 1 {
        println!("skipped: this kernel allows nothing but tier {}", tiers[0]);
    }
}
