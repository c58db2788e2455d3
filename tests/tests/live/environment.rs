//! What the machine does not give: a clear error, no panic, and nothing lost.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::event::Body;
use breakglass_tests::{
    binaries::Binaries,
    machine::{self, Need},
    poll,
    stack::{Options, Stack},
    undo::Run,
};

use crate::{
    Company, SESSION, Test,
    record::{expect_numbers, numbers},
};

pub const TESTS: &[Test] = &[
    Test {
        name: "environment::bad_configuration",
        needs: &[Need::Root],
        company: Company::Others,
        run: bad_configuration,
    },
    Test { name: "environment::busy_ports", needs: SESSION, company: Company::Others, run: busy_ports },
    Test {
        name: "environment::damaged_certificate",
        needs: SESSION,
        company: Company::Others,
        run: damaged_certificate,
    },
    Test { name: "environment::no_capability", needs: SESSION, company: Company::Others, run: no_capability },
    Test { name: "environment::no_btf", needs: SESSION, company: Company::Others, run: no_btf },
    Test { name: "environment::full_disk", needs: SESSION, company: Company::Others, run: full_disk },
    Test { name: "environment::read_only_state", needs: SESSION, company: Company::Others, run: read_only_state },
];

/// Fails unless a program ended by itself, without success, saying all of `words` and not panicking.
fn expect_failure(output: &Output, words: &[&str]) -> Result<()> {
    let said = [&output.stderr[..], &output.stdout[..]].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.signal().is_none() && !output.status.success(), "{}: {said}", output.status);
    ensure!(!said.contains("panicked at"), "a panic: {said}");
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in: {said}");
    }
    Ok(())
}

fn bad_configuration() -> Result<()> {
    let run = Run::begin()?;
    let agent = Binaries::find()?.agent;
    let start = |path: &str| Command::new(&agent).args(["run", "--config", path]).output();
    let path = run.folder().join("agent.toml");
    let name = path.to_str().context("not UTF-8")?;

    expect_failure(&start(name)?, &[name, "No such file"])?;
    fs::write(&path, "[grant]\nmax_ttl = \"1h\"\nmax_tll = \"2h\"\n")?;
    expect_failure(&start(name)?, &[name, "line 3", "max_tll"])?;
    fs::write(&path, "[account]\nname = \"root\"\n")?;
    expect_failure(&start(name)?, &[name, "account.name", "root"])?;
    fs::write(&path, [0xff, 0xfe])?;
    expect_failure(&start(name)?, &[name, "UTF-8"])?;
    fs::write(&path, "[account]\nname = \"bgt-no-such-account\"\n")?;
    expect_failure(&start(name)?, &["bgt-no-such-account"])
}

fn busy_ports() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let busy = stack.collector_address.to_string();
        let collector = |what: &str| {
            let mut command = Command::new(&stack.binaries.collector);
            command.arg(what).arg("--dir").arg(stack.path("second")).args(["--listen", &busy]);
            command
        };
        machine::run(&mut collector("init"))?;
        expect_failure(&collector("serve").output()?, &[&busy])?;

        // Whoever took the agent's port meanwhile keeps nobody from the Unix socket, and no longer than that has it from TLS.
        stack.agent.stop()?;
        let squatter = TcpListener::bind("127.0.0.1:0")?;
        let busy = squatter.local_addr()?.to_string();
        let config = fs::read_to_string(stack.path("agent.toml"))?;
        fs::write(
            stack.path("agent.toml"),
            config.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{busy}\"")),
        )?;
        stack.start_agent_under(&[])?;
        stack.wait_until_ready()?;
        let agent = &stack.agent;
        poll::until_true("the agent to say what is wrong and what to do", poll::SOON, || {
            let said = agent.output();
            Ok(["cannot listen on", &busy, "control.listen"].iter().all(|word| said.contains(word)))
        })?;
        let status = stack.status()?;
        ensure!(status.door_error.contains(&busy), "status: {:?}", status.door_error);
        let mut told = Command::new(stack.path("bin/breakglass-agent"));
        let told = machine::run(told.args(["status", "--socket"]).arg(stack.socket()))?;
        ensure!(told.contains("CLOSED") && told.contains(&busy), "{told}");
        let opened = stack.open_over_socket("its port is busy", "10m")?;
        stack.ssh_run(&opened, "true")?;
        stack.control()?.close()?;
        stack.collected(&opened.session)?;

        drop(squatter);
        poll::until_true("the agent to take the port", poll::SOON, || Ok(stack.status()?.door_error.is_empty()))?;
        ensure!(fs::read_to_string(stack.path("run/control.addr"))?.trim() == busy, "another address is told");
        TcpStream::connect(&busy)?;
        stack.wait_until_acknowledged()?;
        let events = stack.query()?.host_events(stack.host())?;
        let alerts: Vec<_> = events
            .into_iter()
            .filter_map(|recorded| match recorded.event?.body? {
                Body::Alert(alert) if alert.code.starts_with("door-") => Some(alert.code),
                _ => None,
            })
            .collect();
        ensure!(alerts == ["door-closed", "door-open"], "{alerts:?}");
        Ok(())
    })
}

/// A host whose certificate is damaged records and opens all the same, and serves TLS once it is mended.
fn damaged_certificate() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        stack.agent.stop()?;
        let path = stack.path("host/host.crt");
        let certificate = fs::read(&path)?;
        fs::write(&path, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")?;
        stack.start_agent_under(&[])?;
        stack.wait_until_ready()?;
        let status = stack.status()?;
        ensure!(status.door_error.contains("host.crt"), "status: {:?}", status.door_error);
        let opened = stack.open_over_socket("the certificate is damaged", "10m")?;
        stack.ssh_run(&opened, "true")?;
        fs::write(&path, certificate)?;
        poll::until_true("TLS to be served", poll::SOON, || Ok(stack.status()?.door_error.is_empty()))?;
        stack.control()?.close()?;
        stack.collected(&opened.session).map(drop)
    })
}

fn no_capability() -> Result<()> {
    let setpriv = machine::program("setpriv")?;
    // Neither the kernel's program capabilities nor the one that stands for them on older kernels.
    unrecorded(&[&setpriv, "--bounding-set=-bpf,-perfmon,-sys_admin"], "CAP_BPF")
}

fn no_btf() -> Result<()> {
    let (unshare, shell) = (machine::program("unshare")?, machine::program("sh")?);
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    // With the mounts' changes shared, so that everything else is as on the host.
    unrecorded(&[&unshare, "--mount", "--propagation=slave", &shell, "-c", hide, "sh"], "/sys/kernel/btf/vmlinux")
}

/// Starts the agent where the kernel's programs cannot be loaded: it either ends with an error, or stays, says so, and refuses to
/// open. Then starts it as it should be: it works as if nothing had been.
fn unrecorded(wrapper: &[&str], word: &str) -> Result<()> {
    Stack::with(Options::default(), |stack| {
        stack.agent.stop()?;
        stack.start_agent_under(wrapper)?;
        match stack.wait_until_ready() {
            Ok(()) => {
                let status = stack.status()?;
                ensure!(status.tier == "none", "tier {}", status.tier);
                ensure!(status.tier_reason.contains(word), "{word:?} is not in: {}", status.tier_reason);
                let mut open = stack.breakglass();
                open.args(["open", "--socket"]).arg(stack.socket()).args([
                    "--reason",
                    "unrecorded",
                    "--no-ssh",
                    "--json",
                ]);
                let output = open.output()?;
                expect_failure(&output, &["tier"])?;
                ensure!(output.status.code() == Some(3), "{}", output.status);
                stack.agent.stop()?;
            }
            Err(_) => {
                let status = stack.agent.wait(poll::SOON)?;
                ensure!(!status.success() && status.signal().is_none(), "{status}; {}", stack.agent.tail());
                ensure!(stack.agent.output().contains(word), "{word:?} is not in: {}", stack.agent.tail());
            }
        }
        stack.start_agent()?;
        let opened = stack.open("as it should be", "10m")?;
        stack.ssh_run(&opened, "true")?;
        let session = stack.close_and_collect(&opened)?;
        ensure!(session.execs > 0, "nothing was recorded");
        Ok(())
    })
}

/// Fills the disk under the spool while the collector cannot be reached, runs programs, makes room, and expects every one of them.
fn full_disk() -> Result<()> {
    const COUNT: u64 = 200;
    // Where the policy is to deny, they do not run: `fail_closed.rs`.
    let options = Options { relay: true, state_disk: Some("2m"), unrecorded: "record", ..Options::default() };
    Stack::with(options, |stack| {
        let opened = stack.open("full disk", "10m")?;
        stack.relay.as_ref().context("no relay")?.cut();
        let mut terminal = stack.login(&opened)?;
        // Noise, so that compression does not help.
        terminal.send("head -c 3000000 /dev/urandom | base64; echo no''ise over\n")?;
        terminal.expect_within("noise over", poll::EVENTUALLY)?;
        terminal.send("exit\n")?;
        terminal.finish(poll::SOON)?;
        stack.ssh_run(&opened, &format!("{} execs {COUNT}", stack.probe().display()))?;
        let agent = &stack.agent;
        poll::until_true("the agent to say that the disk is full", poll::SOON, || {
            Ok(agent.output().contains("No space left on device"))
        })?;
        // Long enough for a daemon that gives up to have done so.
        thread::sleep(Duration::from_secs(1));
        stack.agent.check()?;

        machine::mount_memory_disk(&stack.path("state"), "256m")?;
        stack.relay.as_ref().context("no relay")?.mend();
        stack.close_and_collect(&opened)?;
        expect_numbers(&numbers(&stack.query()?.commands(&opened.session)?)?, COUNT)
    })
}

/// Makes the disk of the agent's state read-only: the host still opens, is recorded in memory, and says so.
fn read_only_state() -> Result<()> {
    const COUNT: u64 = 50;
    let options = Options { state_disk: Some("64m"), ..Options::default() };
    Stack::with(options, |stack| {
        stack.agent.stop()?;
        machine::make_read_only(&stack.path("state"))?;
        stack.start_agent()?;
        let status = stack.status()?;
        ensure!(status.spool_in_memory.contains("Read-only file system"), "status: {:?}", status.spool_in_memory);
        let opened = stack.open("read-only state", "10m")?;
        stack.ssh_run(&opened, &format!("{} execs {COUNT}", stack.probe().display()))?;
        stack.close_and_collect(&opened)?;
        let mut query = stack.query()?;
        expect_numbers(&numbers(&query.commands(&opened.session)?)?, COUNT)?;
        let said = query.host_events(stack.host())?.into_iter().any(|recorded| {
            let body = recorded.event.and_then(|event| event.body);
            matches!(body, Some(Body::Alert(alert)) if alert.code == "spool-in-memory")
        });
        ensure!(said, "the record does not say that it was kept in memory");
        stack.agent.stop()?;
        // Written again, with what lay there, from the next start on.
        machine::mount_memory_disk(&stack.path("state"), "64m")?;
        stack.start_agent()?;
        ensure!(stack.status()?.spool_in_memory.is_empty(), "{:?}", stack.status()?);
        Ok(())
    })
}
