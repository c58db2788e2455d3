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

/// Pairs of floods, and the size of one, bytes: about an eighth of a second, so that both of a pair find the machine in the same mood.
const PAIRS: u64 = 60;
const FLOOD: usize = 8 << 20;

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    // Without a collector: it would share this machine's cores, which it does not do where it matters.
    Stack::with(Options { ship: false, ..Options::default() }, |stack| {
        let bystander = Account::create(&stack.run, "b")?;
        // In a folder that is open to others: sshd reads the file as the user it lets in.
        let keys = stack.run.make("bystander", 0o755)?.join("key.pub");
        fs::copy(stack.key().with_extension("pub"), &keys)?;
        let sshd = Sshd::start(&stack.run, "sshd-bystander", &bystander.name, &Keys::File(keys), true)?;
        let opened = stack.open("measured", "10m")?;
        let mut recorded_login = Login::new(stack, &opened)?;
        let mut plain_login = Login::new(stack, &elsewhere(&bystander, &sshd)?)?;
        // What an opening brings is over: the agent then looks through the host for what a session may leave behind.
        exec::wait_until_quiet(stack)?;
        let (mut ratio, mut recorded_rate, mut plain_rate) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..effort.runs(PAIRS) {
            // Either goes first as often, so that neither always finds what the other left to do.
            let (plain, recorded) = if pair % 2 == 0 {
                (plain_login.flood(stack)?, recorded_login.flood(stack)?)
            } else {
                let recorded = recorded_login.flood(stack)?;
                (plain_login.flood(stack)?, recorded)
            };
            ratio.push(recorded / plain);
            recorded_rate.push(recorded);
            plain_rate.push(plain);
        }
        recorded_login.leave()?;
        plain_login.leave()?;
        stack.close()?;
        stack.wait_for_state("locked")?;
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

/// A shell that somebody is logged in to.
struct Login(Terminal);

impl Login {
    fn new(stack: &Stack, opened: &Opened) -> Result<Self> {
        stack.write_known_hosts(opened)?;
        Ok(Self(stack.login(opened)?))
    }

    /// Megabytes a second through its terminal.
    fn flood(&mut self, stack: &Stack) -> Result<f64> {
        self.0.forget();
        let start = Instant::now();
        self.0.send(format!("{} flood {FLOOD}; echo fl''ood over\n", stack.probe().display()))?;
        self.0.expect_within("flood over", poll::EVENTUALLY)?;
        let rate = self.0.seen_len() as f64 / 1e6 / start.elapsed().as_secs_f64();
        self.0.expect(PROMPT_SHOWN)?;
        Ok(rate)
    }

    fn leave(mut self) -> Result<()> {
        self.0.send("exit\n")?;
        self.0.finish(poll::SOON)?;
        Ok(())
    }
}
