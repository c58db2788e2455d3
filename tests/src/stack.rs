//! A whole installation on this machine: collector, agent, account, sshd and the configuration of an operator and a reviewer.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use breakglass_api::v1::Status;

use crate::{
    account::{Account, allow_sudo, allow_sudo_freely},
    binaries::Binaries,
    control::Control,
    daemon::Daemon,
    gate::Gate,
    machine, poll,
    proxy::Proxy,
    query::Query,
    sshd::{Keys, Sshd, make_key},
    undo::{Entry, Run},
};

/// How much of a log is quoted around a panic.
const PANIC_LINES: usize = 20;

/// Principal of the operator whose key the host knows.
pub const OPERATOR: &str = "alice@example.org";

/// What differs between installations.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether sshd uses PAM.
    pub pam: bool,
    /// Whether PAM asks the gate.
    pub gate: bool,
    /// Password that `sudo` asks the emergency account for; none: no sudo.
    pub sudo_password: Option<String>,
    /// `Defaults` of sudoers for it: whether `sudo` puts commands into a terminal of their own, and shows asterisks.
    pub sudo_defaults: &'static str,
    /// Whether the emergency account may use `sudo` without any password.
    pub sudo_freely: bool,
    /// Longest session that policy allows.
    pub max_ttl: String,
    /// Whether policy takes only security keys that have checked their holder.
    pub user_verification: bool,
    /// Whether the agent walks the file systems for what a session leaves behind, which takes it seconds of processor time.
    pub walk: bool,
    /// Whether the agent reaches the collector through a relay that can be cut.
    pub relay: bool,
    /// Whether the agent knows a collector at all.
    pub ship: bool,
    /// What the agent is started through, such as a scope of systemd's; none: directly.
    pub agent_under: &'static [&'static str],
    /// Size of a memory disk for the agent's state, as mount(8) takes it, such as "6m"; none: it lies where the rest does.
    pub state_disk: Option<&'static str>,
    /// Whether that is an ext4 in a file in place of memory.
    pub state_in_file: bool,
    /// Size of the ring for output, as the agent takes it; none: its default.
    pub bulk_ring: Option<&'static str>,
    /// No more of the kernel is used than this tier; none: all that there is.
    pub maximum_tier: Option<&'static str>,
    /// What becomes of programs that cannot be recorded for certain: "deny" or "record".
    pub unrecorded: &'static str,
    /// Whether sshd's host keys are made anew after each session.
    pub renew_host_keys: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pam: true,
            gate: false,
            sudo_password: None,
            sudo_defaults: "!use_pty",
            sudo_freely: false,
            max_ttl: "1h".into(),
            user_verification: false,
            walk: false,
            relay: false,
            ship: true,
            agent_under: &[],
            state_disk: None,
            state_in_file: false,
            bulk_ring: None,
            maximum_tier: None,
            unrecorded: "deny",
            renew_host_keys: false,
        }
    }
}

/// A running installation; everything is undone when it is dropped.
#[derive(Debug)]
pub struct Stack {
    /// The programs.
    pub binaries: Binaries,
    /// The emergency account.
    pub account: Account,
    /// The sshd that lets it in.
    pub sshd: Sshd,
    /// The collector.
    pub collector: Daemon,
    /// Where the collector listens.
    pub collector_address: SocketAddr,
    /// Between agent and collector, where asked for.
    pub relay: Option<Proxy>,
    /// The agent.
    pub agent: Daemon,
    /// What was asked for.
    pub options: Options,
    /// The folder of all this, and how to take it back. Dropped last.
    pub run: Run,
}

impl Stack {
    /// Starts everything and waits until the agent is ready and the account locked.
    pub fn start(options: Options) -> Result<Self> {
        let binaries = Binaries::find()?;
        machine::mount_kernel_filesystems()?;
        let run = Run::begin()?;
        let bin = run.make("bin", 0o755)?;
        for program in [&binaries.agent, &binaries.probe] {
            let name = program.file_name().context("a program without a name")?;
            fs::copy(program, bin.join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
        }
        let account = Account::create(&run, "")?;
        if let Some(password) = &options.sudo_password {
            allow_sudo(&run, &account, password, options.sudo_defaults)?;
        } else if options.sudo_freely {
            allow_sudo_freely(&run, &account)?;
        }
        let runtime = run.make("run", 0o755)?;
        let helper = format!("{}/breakglass-agent keys --runtime {} %u", bin.display(), runtime.display());
        let keys = Keys::Helper(helper);
        let sshd = if options.gate {
            let gate =
                Gate { agent: bin.join("breakglass-agent"), account: account.name.clone(), runtime: runtime.clone() };
            gate.install(&run, &format!("{}-sshd", account.name), |text| text)?;
            Sshd::start_gated(&run, "sshd", &account.name, &keys)?
        } else {
            Sshd::start(&run, "sshd", &account.name, &keys, options.pam)?
        };
        let (collector, collector_address) = start_new_collector(&run, &binaries)?;
        let relay = if options.relay { Some(Proxy::start(collector_address)?) } else { None };
        enrol(&run, &binaries)?;
        make_operator(&run)?;
        if let Some(size) = options.state_disk {
            let state = run.make("state", 0o700)?;
            run.note(Entry::Mount(state.clone()))?;
            match options.state_in_file {
                true => machine::mount_file_disk(&state, &run.folder().join("state.ext4"), size)?,
                false => machine::mount_memory_disk(&state, size)?,
            }
        }
        run.note(Entry::Path(pins(&run)))?;
        let reached = relay.as_ref().map_or(collector_address, Proxy::address);
        fs::write(run.folder().join("agent.toml"), agent_config(&run, &account, &sshd, &options, reached))?;
        let agent = start_agent(&run, &binaries, options.agent_under)?;
        let mut stack = Self { binaries, account, sshd, collector, collector_address, relay, agent, options, run };
        stack.wait_until_ready()?;
        stack.write_cli_config()?;
        Ok(stack)
    }

    /// Runs `test` on a new installation. An error comes with the ends of the logs; a panic of a daemon is an error.
    pub fn with<T>(options: Options, test: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let mut stack = Self::start(options)?;
        let result = test(&mut stack).and_then(|value| stack.check_no_panic().map(|()| value));
        // An agent that is guarded ends only when no session is open. Mostly none is, and the agent may be gone.
        let _ = stack.control().and_then(|mut control| control.close());
        result.map_err(|error| anyhow!("{error:#}\n\n{}\n{}", stack.agent.tail(), stack.collector.tail()))
    }

    /// The name that operators call the host.
    pub fn host(&self) -> &str {
        self.run.name()
    }

    /// A path in the installation's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.run.folder().join(name)
    }

    /// The agent's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.path("run/control.sock")
    }

    /// The operator's private key.
    pub fn key(&self) -> PathBuf {
        self.path("operator/id_ed25519")
    }

    /// The probe, where the emergency account can run it.
    pub fn probe(&self) -> PathBuf {
        self.path("bin/breakglass-probe")
    }

    /// A new connection to the agent's Unix socket.
    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.socket())
    }

    /// What the agent says that it is doing.
    pub fn status(&self) -> Result<Status> {
        self.control()?.status()
    }

    /// The collector, as the reviewer sees it.
    pub fn query(&self) -> Result<Query> {
        Query::new(self.collector_address, &self.path("reviewer"))
    }

    /// Kills the agent without warning.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.kill()
    }

    /// Starts the agent again and waits until it is ready.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_under(self.options.agent_under)?;
        self.wait_until_ready()?;
        // A free port was taken anew.
        self.write_cli_config()
    }

    /// Starts the agent through another program that runs what follows its own arguments, and does not wait.
    pub fn start_agent_under(&mut self, wrapper: &[&str]) -> Result<()> {
        self.agent = start_agent(&self.run, &self.binaries, wrapper)?;
        Ok(())
    }

    /// Starts the collector again at the same address.
    pub fn start_collector(&mut self) -> Result<()> {
        (self.collector, _) = serve(&self.run, &self.binaries, self.collector_address)?;
        Ok(())
    }

    /// Waits until the collector has acknowledged all that the agent has recorded.
    pub fn wait_until_acknowledged(&self) -> Result<()> {
        poll::until_true("the collector to have everything", poll::EVENTUALLY, || {
            let status = self.status()?;
            Ok(status.last_seq > 0 && status.acked_seq == status.last_seq)
        })
    }

    /// Waits until the agent is in `state`.
    pub fn wait_for_state(&self, state: &str) -> Result<Status> {
        poll::until(&format!("the agent to be {state}"), poll::SOON, || {
            let status = self.status()?;
            Ok((status.state == state).then_some(status))
        })
    }

    /// Waits until the agent answers; fails at once if it ends.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let socket = self.socket();
        let agent = &mut self.agent;
        // Verifying the kernel programs takes seconds under emulation.
        let ready = poll::until("the agent to be ready", poll::EVENTUALLY, || {
            if let Err(ended) = agent.check() {
                return Ok(Some(Err(ended)));
            }
            Control::connect(&socket)?.status().map(|_| Some(Ok(())))
        });
        ready.and_then(|ready| ready).with_context(|| self.agent.tail())
    }

    fn write_cli_config(&self) -> Result<()> {
        // The Unix socket answers whether or not that door is open.
        let address = poll::until("the agent to say where it serves TLS", poll::SOON, || {
            Ok(Some(fs::read_to_string(self.path("run/control.addr"))?))
        })?;
        let reviewer = self.path("reviewer");
        let reviewer = reviewer.display();
        let config = format!(
            "[collector]\nurl = \"https://{}\"\nserver_name = \"collector\"\nca = \"{reviewer}/ca.crt\"\n\
             cert = \"{reviewer}/person.crt\"\nkey = \"{reviewer}/person.key\"\n\n\
             [operator]\nidentity = \"id_ed25519\"\nname = \"{OPERATOR}\"\n\n\
             [hosts.{}]\naddress = \"{}\"\nssh = \"127.0.0.1:{}\"\n",
            self.collector_address,
            self.host(),
            address.trim(),
            self.sshd.port,
        );
        fs::write(self.path("operator/config.toml"), config).context("cannot write the command's configuration")
    }

    fn check_no_panic(&self) -> Result<()> {
        for daemon in [&self.agent, &self.collector] {
            let log = String::from_utf8_lossy(&fs::read(daemon.log())?).into_owned();
            // With what was said just before and after: the log goes on, and its end may say nothing of it.
            if let Some(at) = log.lines().position(|line| line.contains("panicked at")) {
                let around: Vec<_> = log.lines().skip(at.saturating_sub(3)).take(PANIC_LINES).collect();
                bail!("a panic of {}:\n{}", daemon.name(), around.join("\n"));
            }
        }
        Ok(())
    }
}

/// Where a run's kernel programs are pinned.
pub fn pins(run: &Run) -> PathBuf {
    Path::new("/sys/fs/bpf").join(run.name())
}

/// Makes a collector in the run's folder and starts it on a free port.
pub fn start_new_collector(run: &Run, binaries: &Binaries) -> Result<(Daemon, SocketAddr)> {
    let folder = run.make("collector", 0o700)?;
    let mut init = Command::new(&binaries.collector);
    init.arg("init").arg("--dir").arg(folder).args(["--listen", "127.0.0.1:0", "--san", "127.0.0.1"]);
    machine::run(&mut init)?;
    serve(run, binaries, SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn serve(run: &Run, binaries: &Binaries, listen: SocketAddr) -> Result<(Daemon, SocketAddr)> {
    let mut command = Command::new(&binaries.collector);
    command.arg("serve").arg("--dir").arg(run.folder().join("collector")).args(["--listen", &listen.to_string()]);
    let mut daemon = Daemon::start(run, "collector", &mut command)?;
    let address = daemon.wait_for("where it listens", poll::SOON, |output| {
        output.lines().find_map(|line| line.strip_prefix("listening on ")?.trim().parse().ok())
    })?;
    Ok((daemon, address))
}

fn enrol(run: &Run, binaries: &Binaries) -> Result<()> {
    let enroll = |kind: &[&str], name: &str, out: &str| {
        let mut command = Command::new(&binaries.collector);
        command.arg("enroll").args(kind).arg(name);
        command.arg("--dir").arg(run.folder().join("collector")).arg("--out").arg(run.folder().join(out));
        machine::run(&mut command).map(drop)
    };
    enroll(&["host"], run.name(), "host")?;
    enroll(&["person", "--role", "reviewer"], "reviewer", "reviewer")
}

/// The operator's key and the host's list of those who may open it.
fn make_operator(run: &Run) -> Result<()> {
    let key = run.make("operator", 0o700)?.join("id_ed25519");
    make_key(&key, OPERATOR)?;
    let public = fs::read_to_string(key.with_extension("pub"))?;
    fs::write(run.folder().join("allowed_signers"), format!("{OPERATOR} {public}"))?;
    Ok(())
}

fn start_agent(run: &Run, binaries: &Binaries, wrapper: &[&str]) -> Result<Daemon> {
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&binaries.agent);
            command
        }
        None => Command::new(&binaries.agent),
    };
    Daemon::start(run, "agent", command.arg("run").arg("--config").arg(run.folder().join("agent.toml")))
}

fn agent_config(run: &Run, account: &Account, sshd: &Sshd, options: &Options, collector: SocketAddr) -> String {
    let folder = run.folder().display();
    let ship = if options.ship {
        format!("\n[collector]\nurls = [\"https://{collector}\"]\nserver_name = \"collector\"\n")
    } else {
        String::new()
    };
    format!(
        "[host]\nname = \"{}\"\nenrolment = \"{folder}/host\"\nstate = \"{folder}/state\"\nruntime = \"{folder}/run\"\n\n\
         [account]\nname = \"{}\"\nssh_port = {}\nssh_host_keys = \"{}\"\nrenew_ssh_host_keys = {renew}\n\n\
         [grant]\nallowed_signers = \"{folder}/allowed_signers\"\nmax_ttl = \"{max}\"\ndefault_ttl = \"{max}\"\nuser_verification = {verified}\n\n\
         [control]\nsocket = \"{folder}/run/control.sock\"\nlisten = \"127.0.0.1:0\"\n{ship}\n\
         [notice]\nsyslog = false\n\n[aftermath]\nwalk = {walk}\n\n[kernel]\npins = \"{}\"\n{kernel}",
        run.name(),
        account.name,
        sshd.port,
        sshd.host_keys.display(),
        pins(run).display(),
        max = options.max_ttl,
        verified = options.user_verification,
        walk = options.walk,
        renew = options.renew_host_keys,
        kernel = kernel_settings(options),
    )
}

fn kernel_settings(options: &Options) -> String {
    let setting = |key: &str, value: Option<&str>| value.map(|value| format!("{key} = \"{value}\"\n"));
    let settings = [
        ("bulk_ring", options.bulk_ring),
        ("maximum_tier", options.maximum_tier),
        ("unrecorded", Some(options.unrecorded)),
    ];
    settings.into_iter().filter_map(|(key, value)| setting(key, value)).collect()
}
