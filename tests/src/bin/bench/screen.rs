//! What recording costs a terminal: the same flood through ssh, recorded and not, in turn.

use std::{fs, time::Instant};

use anyhow::Result;
use breakglass_tests::{
    account::{Account, PROMPT_SHOWN},
    operator::Opened,
    poll,
    sshd::{Keys, Sshd},
    stack::{Options, Stack},
    terminal::Terminal,
};

use crate::{
    Effort, exec,
    figure::{Budget, Figure},
};

/// Pairs of floods, and the size of one, bytes.
const PAIRS: u64 = 10;
const FLOOD: usize = 32 << 20;

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    // Without a collector: it would share this machine's cores, which it does not do where it matters.
    Stack::with(Options { ship: false, ..Options::default() }, |stack| {
        let bystander = Account::create(&stack.run, "b")?;
        // In a folder that is open to others: sshd reads the file as the user it lets in.
        let keys = stack.run.make("bystander", 0o755)?.join("key.pub");
        fs::copy(stack.key().with_extension("pub"), &keys)?;
        let sshd = Sshd::start(&stack.run, "sshd-bystander", &bystander.name, &Keys::File(keys), true)?;
        let (mut ratio, mut recorded_rate, mut plain_rate) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.runs(PAIRS) {
            // What opening and closing bring is over: the agent then looks through the host for what a session may leave behind.
            exec::wait_until_quiet(stack)?;
            let plain = flood(stack, &elsewhere(&bystander, &sshd)?)?;
            let opened = stack.open("measured", "10m")?;
            exec::wait_until_quiet(stack)?;
            let recorded = flood(stack, &opened)?;
            stack.close()?;
            stack.wait_for_state("locked")?;
            ratio.push(recorded / plain);
            recorded_rate.push(recorded);
            plain_rate.push(plain);
        }
        Ok(vec![
            Figure::new("terminal output, recorded against unrecorded", "×", ratio, Budget::MedianAtLeast(0.95)),
            Figure::new("terminal output, recorded", "MB/s", recorded_rate, Budget::None),
            Figure::new("terminal output, unrecorded", "MB/s", plain_rate, Budget::None),
        ])
    })
}

/// A login beside the glass, in the same shape.
fn elsewhere(account: &Account, sshd: &Sshd) -> Result<Opened> {
    let key = fs::read_to_string(sshd.host_keys.join("ssh_host_ed25519_key.pub"))?;
    Ok(Opened {
        session: String::new(),
        account: account.name.clone(),
        ssh_port: sshd.port,
        deadline_boot_ns: 0,
        ttl_seconds: 0,
        agent_us: 0,
        ssh_host_keys: vec![key.trim().to_owned()],
    })
}

/// Megabytes a second through a login's terminal.
fn flood(stack: &Stack, opened: &Opened) -> Result<f64> {
    stack.write_known_hosts(opened)?;
    let mut terminal: Terminal = stack.login(opened)?;
    let before = terminal.seen_len();
    let start = Instant::now();
    terminal.send(format!("{} flood {FLOOD}; echo fl''ood over\n", stack.probe().display()))?;
    terminal.expect_within("flood over", poll::EVENTUALLY)?;
    let rate = (terminal.seen_len() - before) as f64 / 1e6 / start.elapsed().as_secs_f64();
    terminal.expect(PROMPT_SHOWN)?;
    terminal.send("exit\n")?;
    terminal.finish(poll::SOON)?;
    Ok(rate)
}
