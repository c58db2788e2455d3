//! Work that a session hands to others: the service manager, cron, at, the host's own ssh server, somebody else's tmux. It does not
//! descend from the login; it is recorded all the same, with its link.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Exec, RecordedEvent, Ring, event::Body, witness_link::Kind};
use breakglass_tests::{
    poll,
    stack::{Options, Stack},
    terminal::Terminal,
};

use crate::guest::{Guest, shell};

const PASSWORD: &str = "xK9-handed-over";
/// cron looks once a minute.
const CRON_WAIT: Duration = Duration::from_secs(150);

/// One way of handing over: the marker of the program, and what its link has to be.
struct Way {
    marker: &'static str,
    kind: Kind,
    proven: bool,
    tagged: bool,
}

const fn way(marker: &'static str, kind: Kind, proven: bool, tagged: bool) -> Way {
    Way { marker, kind, proven, tagged }
}

const WAYS: [Way; 6] = [
    way("by-transient-unit", Kind::Unit, false, true),
    way("by-written-unit", Kind::Unit, true, false),
    way("by-at", Kind::Job, true, true),
    way("by-ssh", Kind::LocalLogin, true, true),
    way("by-tmux", Kind::Multiplexer, false, false),
    way("by-cron", Kind::Job, false, false),
];

#[test]
fn what_a_session_has_others_run_is_recorded_with_its_link() -> Result<()> {
    let Some(_guest) = Guest::on("6.12") else { return Ok(()) };
    let options = Options { sudo_password: Some(PASSWORD.into()), ..Options::default() };
    let _tidy = Tidy;
    // Root's own, from before the session.
    shell("tmux -L theirs new-session -d 'sleep 1000'")?;
    Stack::with(options, |stack| {
        let opened = stack.open("handing over", "10m")?;
        let mut terminal = stack.login(&opened)?;
        terminal.send("sudo -k; sudo -s\n")?;
        terminal.expect_within("password for", poll::EVENTUALLY)?;
        terminal.send(format!("{PASSWORD}\n"))?;
        terminal.expect_within("# ", poll::EVENTUALLY)?;
        let step = |terminal: &mut Terminal, line: &str| -> Result<()> {
            terminal.send(format!("{line}; echo st''ep\n"))?;
            terminal.expect_within("step", poll::EVENTUALLY).with_context(|| line.to_owned())
        };
        step(&mut terminal, "echo '* * * * * root /bin/true by-cron' > /etc/cron.d/lab-handed")?;
        step(&mut terminal, "systemd-run --wait --quiet /bin/true by-transient-unit")?;
        let unit = "printf '[Service]\\nType=oneshot\\nExecStart=/bin/true by-written-unit\\n'";
        step(&mut terminal, &format!("{unit} > /etc/systemd/system/lab-handed.service"))?;
        step(&mut terminal, "systemctl daemon-reload; systemctl start lab-handed")?;
        step(&mut terminal, "echo '/bin/true by-at; sleep 3' | at now 2>&1")?;
        step(&mut terminal, "ssh-keygen -q -t ed25519 -N '' -f /root/lab-handed; mkdir -p /root/.ssh")?;
        step(&mut terminal, "cat /root/lab-handed.pub >> /root/.ssh/authorized_keys")?;
        let ssh = "ssh -F none -i /root/lab-handed -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null";
        step(&mut terminal, &format!("{ssh} root@127.0.0.1 /bin/true by-ssh"))?;
        step(&mut terminal, "tmux -L theirs new-window '/bin/true by-tmux'")?;

        let mut query = stack.query()?;
        let all_there = |events: &[RecordedEvent]| WAYS.iter().all(|way| outside(events, way.marker).is_some());
        let mut events = Vec::new();
        let waited = poll::until_true("all of it to be recorded", CRON_WAIT, || {
            events = query.events(&opened.session)?;
            Ok(all_there(&events))
        });
        if waited.is_err() {
            let missing: Vec<_> =
                WAYS.iter().filter(|way| outside(&events, way.marker).is_none()).map(|way| way.marker).collect();
            waited.with_context(|| format!("not recorded: {missing:?}"))?;
        }
        for way in &WAYS {
            let exec = outside(&events, way.marker).context("just seen")?;
            let link = exec.link.as_ref().with_context(|| format!("{} has no link", way.marker))?;
            let found = (link.kind(), link.proven, link.tagged);
            ensure!(found == (way.kind, way.proven, way.tagged), "{}: {found:?}, {link:?}", way.marker);
            println!("{}: {link:?}", way.marker);
        }
        terminal.send("exit\nexit\n")?;
        terminal.finish(poll::EVENTUALLY)?;
        stack.close()
    })
}

/// The program that was started for a marker, itself or the shell around it, as it was first recorded outside of the session.
fn outside<'a>(events: &'a [RecordedEvent], marker: &str) -> Option<&'a Exec> {
    events.iter().filter_map(|recorded| recorded.event.as_ref()).find_map(|event| match &event.body {
        Some(Body::Exec(exec)) => {
            let witness = event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Witness);
            // What at runs comes by standard input.
            let job =
                marker == "by-at" && exec.link.as_ref().is_some_and(|link| link.kind() == Kind::Job && link.proven);
            let named =
                exec.argv.iter().any(|argument| argument.windows(marker.len()).any(|part| part == marker.as_bytes()));
            (witness && (named || job)).then_some(exec)
        }
        _ => None,
    })
}

/// Puts back what the session changed.
struct Tidy;

impl Drop for Tidy {
    fn drop(&mut self) {
        for path in [
            "/etc/cron.d/lab-handed",
            "/etc/systemd/system/lab-handed.service",
            "/root/lab-handed",
            "/root/lab-handed.pub",
        ] {
            let _ = fs::remove_file(path);
        }
        let keys = Path::new("/root/.ssh/authorized_keys");
        let _ = fs::remove_file(keys);
        let _ = shell(
            "systemctl daemon-reload; tmux -L theirs kill-server; for job in $(atq | cut -f1); do atrm $job; done",
        );
    }
}
