//! Something that locks the account if the agent never comes back: a timer of systemd's own, one for the open session.
//!
//! It runs `breakglass-agent lock --expired` shortly after the deadline, which locks unless a grant is live; so a timer that was left over,
//! or that fires during a later session, harms nothing. The timer counts on the monotonic clock, systemd.timer(5), which stands still while
//! the machine sleeps, and the deadline's boot clock does not: it is late by as long as that. Best effort: where there is no systemd, or it
//! does not answer, the agent's own deadline and the key file's stay.

use std::{
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use super::systemd;

/// Name of the transient units.
const UNIT: &str = "breakglass-backstop";

/// Behind the deadline: the agent should have locked itself by then.
const GRACE: Duration = Duration::from_secs(5);

/// Sets and takes back the timer, on a thread of its own.
pub struct Backstop {
    /// The time until it is to go off, or that there shall be none. None where there is no systemd.
    orders: Option<Sender<Option<Duration>>>,
}

impl Backstop {
    /// The timer will run the agent's `lock` with this configuration.
    pub fn new(config: &Path) -> Self {
        let program = std::env::current_exe();
        let (Ok(program), true) = (program, systemd::is_running()) else { return Self { orders: None } };
        let (orders, receiver) = channel();
        let config = config.to_owned();
        thread::spawn(move || work(&receiver, &program, &config));
        Self { orders: Some(orders) }
    }

    /// Sets the timer, in place of an earlier one.
    pub fn arm(&self, until_deadline: Duration) {
        self.order(Some(until_deadline));
    }

    /// Takes the timer back.
    pub fn disarm(&self) {
        self.order(None);
    }

    fn order(&self, order: Option<Duration>) {
        // The thread goes only with the agent.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

fn work(orders: &Receiver<Option<Duration>>, program: &Path, config: &Path) {
    while let Ok(first) = orders.recv() {
        // Only the latest counts.
        let order = orders.try_iter().last().unwrap_or(first);
        systemd::run("systemctl", &["stop", &format!("{UNIT}.timer")]);
        if let Some(until_deadline) = order {
            let arguments = timer(until_deadline, program, config);
            systemd::run("systemd-run", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}

/// Arguments of systemd-run(1). The unit runs in `/`, so a path from our working folder must not depend on it. Links stay links: what one
/// leads to when the timer goes off counts.
fn timer(until_deadline: Duration, program: &Path, config: &Path) -> Vec<String> {
    let seconds = (until_deadline + GRACE).as_secs() + 1;
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    vec![
        format!("--unit={UNIT}"),
        "--collect".into(),
        format!("--on-active={seconds}s"),
        "--timer-property=AccuracySec=1s".into(),
        "--description=Lock the Breakglass account if the agent does not".into(),
        "--".into(),
        program.display().to_string(),
        "lock".into(),
        "--expired".into(),
        "--config".into(),
        config.display().to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_goes_off_behind_the_deadline() {
        let line =
            timer(Duration::from_millis(1500), Path::new("/usr/sbin/breakglass-agent"), Path::new("/c")).join(" ");
        assert!(line.contains("--on-active=7s") && line.ends_with("lock --expired --config /c"), "{line}");
    }

    #[test]
    fn the_timer_finds_a_configuration_that_was_named_from_the_working_folder() {
        let here = std::env::current_dir().unwrap().join("c.toml").display().to_string();
        assert_eq!(timer(Duration::ZERO, Path::new("/a"), Path::new("c.toml")).last(), Some(&here));
    }
}
