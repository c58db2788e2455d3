//! What operators do: break the glass, close, look how a host stands.

mod client;
mod code;
mod cosign;
mod failure;
mod kex;
mod login;
mod sign;
mod target;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use breakglass_api::{
    CLOSE_NAMESPACE, GRANT_NAMESPACE,
    grant::{Claim, CloseText, GrantText},
    v1::{
        Challenge, ChallengeRequest, CloseRequest, Closed, OpenRequest, Opened, Status, StatusRequest,
        control_request::Body as Request, control_response::Body as Answer,
    },
};
use clap::Args;
use serde_json::json;

pub use self::cosign::CosignArgs;
use self::{
    client::Client,
    failure::{Failure, plain},
    target::{Door, Target, TargetArgs},
};
use crate::config::Config;

/// Arguments of `open`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  breakglass open web1 --reason 'database down, SSO unreachable' --ttl 30m\n  \
                        breakglass open web1 --reason 'restart nginx' --close-on-exit -- sudo systemctl restart nginx\n  \
                        breakglass open --local --reason 'on the console already'")]
pub struct OpenArgs {
    /// Which host.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Why. It is signed, recorded, and read by the security team.
    #[arg(long, short, required_unless_present = "request")]
    pub reason: Option<String>,
    /// The incident's number.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub ticket: String,
    /// How long, such as 30m; the host's own default where left out.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub ttl: Option<Duration>,
    /// SSH key that signs and logs in: a private key, or a public one whose private half is in ssh-agent.
    #[arg(long, short, value_name = "KEY")]
    pub identity: Option<PathBuf>,
    /// Who you are in the host's allowed_signers, in place of operator.name.
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// Prove yourself with a sealed one-time code, in place of a key; it is asked for. The SSH key, if there is one, logs in.
    #[arg(long, conflicts_with_all = ["cosignature", "request", "save_request", "operator"])]
    pub code: bool,
    /// A file with a co-signature, where the host asks for several people; once for each.
    #[arg(long, value_name = "FILE")]
    pub cosignature: Vec<PathBuf>,
    /// The request that was co-signed, as --save-request wrote it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reason", "ticket", "ttl", "close_on_exit", "save_request"])]
    pub request: Option<PathBuf>,
    /// Write the request that others are to co-sign to this file, too.
    #[arg(long, value_name = "FILE")]
    pub save_request: Option<PathBuf>,
    /// End the session when its last process ends.
    #[arg(long)]
    pub close_on_exit: bool,
    /// Do not log in.
    #[arg(long)]
    pub no_ssh: bool,
    /// Print the host's answer as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Say what takes how long.
    #[arg(long, short)]
    pub verbose: bool,
    /// Command to run on the host, in place of a shell.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `close`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  breakglass close web1\n  sudo breakglass close --local")]
pub struct CloseArgs {
    /// Which host.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Only this session; whichever is open where left out.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub session: String,
    /// SSH key that signs.
    #[arg(long, short, value_name = "KEY")]
    pub identity: Option<PathBuf>,
    /// Who you are in the host's allowed_signers, in place of operator.name.
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// Print the host's answer as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  breakglass status web1\n  breakglass status --local --json")]
pub struct StatusArgs {
    /// Which host.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print the host's answer as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The programs that do what only they should.
struct Tools {
    ssh: OsString,
    ssh_keygen: OsString,
    /// Whether somebody is there to be asked.
    interactive: bool,
}

impl Default for Tools {
    fn default() -> Self {
        Self { ssh: "ssh".into(), ssh_keygen: "ssh-keygen".into(), interactive: std::io::stdin().is_terminal() }
    }
}

/// Breaks the glass and logs in; exits with what ssh ended with.
pub async fn run_open(args: &OpenArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(open(args, config, &Tools::default()).await, args.json))
}

/// Consents to somebody else's request.
pub async fn run_cosign(args: &CosignArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(cosign::cosign(args, config, &Tools::default()).await, false))
}

/// Closes a session.
pub async fn run_close(args: &CloseArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(close(args, config, &Tools::default()).await, args.json))
}

/// Shows how a host stands.
pub async fn run_status(args: &StatusArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(status(args, config).await, args.json))
}

fn finish(result: Result<u8, Failure>, json: bool) -> u8 {
    match result {
        Ok(code) => code,
        Err(failure) => {
            say(&format!("breakglass: {failure}"));
            if json {
                println!("{}", json!({ "error": { "code": failure.code(), "message": failure.to_string() } }));
            }
            failure.exit_code()
        }
    }
}

/// A line for the person; standard output is for programs.
fn say(line: &str) {
    eprintln!("{line}");
}

/// What a host answered to a proof.
struct Proved {
    opened: Opened,
    /// Who the host is.
    challenge: Challenge,
    /// From the proof to the answer.
    took: Duration,
    /// Key to log in with.
    identity: Option<PathBuf>,
}

async fn open(args: &OpenArgs, config: &Config, tools: &Tools) -> Result<u8, Failure> {
    let target = args.target.resolve(config)?;
    // Asked while the proof is made; it is another program's start.
    let kex = (config.operator.fast_key_exchange && !args.no_ssh).then(|| tokio::spawn(kex::option(tools.ssh.clone())));
    let proved = match args.code {
        true => prove_by_code(args, config, &target).await?,
        false => prove(args, config, tools, &target).await?,
    };
    let opened = &proved.opened;
    announce(opened, &target, args.verbose.then_some(proved.took));
    if args.json {
        println!("{}", opened_json(opened, &proved.challenge, proved.took));
    }
    let Some(identity) = proved.identity.filter(|_| !args.no_ssh) else { return Ok(0) };
    let kex = match kex {
        Some(asking) => asking.await.ok().flatten(),
        None => None,
    };
    let code = login::login(&tools.ssh, &target, opened, &identity, kex, &args.command).await?;
    if !args.close_on_exit {
        say(&format!(
            "The session stays open until its deadline; to end it now: breakglass close {}",
            addressed(&args.target)
        ));
    }
    Ok(code)
}

async fn prove(args: &OpenArgs, config: &Config, tools: &Tools, target: &Target) -> Result<Proved, Failure> {
    let identity = sign::identity(args.identity.as_deref(), config)?;
    let operator = operator(args.operator.as_deref(), config)?;
    let mut client = Client::connect(target).await?;
    let challenge = challenge(&mut client).await?;
    let text = match &args.request {
        Some(path) => cosign::saved_request(path)?,
        None => grant_text(args, operator, &challenge)?,
    };
    let save = args.save_request.as_deref();
    let cosignatures = cosign::gather(&args.cosignature, save, &challenge, &text, tools.interactive)?;
    say_touch(&identity);
    let signature = sign::sign(&tools.ssh_keygen, &identity, GRANT_NAMESPACE, &text).await?;
    let signed = Instant::now();
    let request = OpenRequest { grant_text: text.into_bytes(), signature, cosignatures };
    let Answer::Opened(opened) = client.ask(Request::Open(request)).await? else { return Err(client.unexpected()) };
    Ok(Proved { opened, challenge, took: signed.elapsed(), identity: Some(identity) })
}

async fn prove_by_code(args: &OpenArgs, config: &Config, target: &Target) -> Result<Proved, Failure> {
    // Without a key there is nobody to log in as over ssh, but whoever is on the host already needs none.
    let identity = match sign::identity(args.identity.as_deref(), config) {
        Err(_) if args.no_ssh && args.identity.is_none() => None,
        found => Some(found?),
    };
    let mut client = Client::connect(target).await?;
    let challenge = challenge(&mut client).await?;
    let (opened, asked) = code::open(args, &mut client, identity.as_deref()).await?;
    Ok(Proved { opened, challenge, took: asked.elapsed(), identity })
}

async fn close(args: &CloseArgs, config: &Config, tools: &Tools) -> Result<u8, Failure> {
    let target = args.target.resolve(config)?;
    let mut client = Client::connect(&target).await?;
    let local = matches!(target.door, Door::Socket(_));
    let request = if local && args.session.is_empty() && nix::unistd::geteuid().is_root() {
        CloseRequest::default()
    } else {
        signed_close(args, config, tools, &mut client).await?
    };
    let Answer::Closed(closed) = client.ask(Request::Close(request)).await? else { return Err(client.unexpected()) };
    say_closed(&closed, &target);
    if args.json {
        println!("{}", json!({ "session": closed.session, "killed": closed.killed, "survivors": closed.survivors }));
    }
    Ok(0)
}

async fn signed_close(
    args: &CloseArgs,
    config: &Config,
    tools: &Tools,
    client: &mut Client<'_>,
) -> Result<CloseRequest, Failure> {
    let identity = sign::identity(args.identity.as_deref(), config)?;
    let operator = operator(args.operator.as_deref(), config)?;
    let challenge = challenge(client).await?;
    let text = CloseText {
        claim: claim(operator, &challenge)?,
        session: args.session.trim().to_owned(),
        client_time: client_time(),
    };
    let text = text.encode().map_err(|e| Failure::Usage(format!("this cannot be asked for: {e}")))?;
    say_touch(&identity);
    let signature = sign::sign(&tools.ssh_keygen, &identity, CLOSE_NAMESPACE, &text).await?;
    Ok(CloseRequest { close_text: text.into_bytes(), signature })
}

async fn status(args: &StatusArgs, config: &Config) -> Result<u8, Failure> {
    let target = args.target.resolve(config)?;
    let mut client = Client::connect(&target).await?;
    let answer = client.ask(Request::Status(StatusRequest {})).await?;
    let Answer::Status(status) = answer else { return Err(client.unexpected()) };
    if args.json {
        println!("{}", status_json(&status));
    } else {
        print!("{}", status_text(&status));
    }
    Ok(0)
}

async fn challenge(client: &mut Client<'_>) -> Result<Challenge, Failure> {
    match client.ask(Request::Challenge(ChallengeRequest {})).await? {
        Answer::Challenge(challenge) => Ok(challenge),
        _ => Err(client.unexpected()),
    }
}

fn operator(named: Option<&str>, config: &Config) -> Result<String, Failure> {
    named.or(config.operator.name.as_deref()).map(|name| name.trim().to_owned()).ok_or_else(|| {
        Failure::Usage("who are you? Set operator.name in the configuration, or give --operator NAME".into())
    })
}

fn claim(operator: String, challenge: &Challenge) -> Result<Claim, Failure> {
    let boot_id = challenge.boot_id.clone().try_into();
    Ok(Claim {
        host_id: challenge.host_id.clone(),
        host_name: challenge.hostname.clone(),
        boot_id: boot_id.map_err(|_| Failure::Other("the host's challenge is damaged".into()))?,
        nonce: challenge.nonce.clone(),
        operator,
    })
}

/// What is asked for. Reason and length are the host's to judge, so that refused requests are in its record.
fn grant_text(args: &OpenArgs, operator: String, challenge: &Challenge) -> Result<String, Failure> {
    let text = GrantText {
        claim: claim(operator, challenge)?,
        reason: args.reason.as_deref().unwrap_or_default().trim().to_owned(),
        ticket: args.ticket.trim().to_owned(),
        ttl_seconds: args.ttl.map_or(challenge.default_ttl_seconds, |ttl| ttl.as_secs()),
        close_on_exit: args.close_on_exit,
        client_time: client_time(),
    };
    text.encode().map_err(|e| Failure::Usage(format!("this cannot be asked for: {e}")))
}

/// The operator's clock; it may be wrong, and decides nothing.
fn client_time() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn say_touch(identity: &Path) {
    if sign::needs_touch(identity) {
        say("Touch your security key to sign …");
    }
}

fn announce(opened: &Opened, target: &Target, took: Option<Duration>) {
    let ttl = humantime::format_duration(Duration::from_secs(opened.ttl_seconds));
    let session = plain(&opened.session);
    match opened.extended {
        true => {
            say(&format!("The glass was broken on {} already and is for another {ttl}: session {session}", target.name))
        }
        false => say(&format!("The glass is broken on {} for {ttl}: session {session}", target.name)),
    }
    for warning in &opened.warnings {
        say(&format!("Warning: {}", plain(warning)));
    }
    if let Some(took) = took {
        say(&format!(
            "{:.1} ms from signed proof to answer, the agent's own share {:.1} ms",
            ms(took),
            opened.agent_us as f64 / 1e3
        ));
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn say_closed(closed: &Closed, target: &Target) {
    say(&format!("Session {} on {} is closed, {} processes ended", plain(&closed.session), target.name, closed.killed));
    if closed.survivors > 0 {
        say(&format!("Warning: {} processes could not be ended; look at the host", closed.survivors));
    }
}

/// How to name the same host again.
fn addressed(target: &TargetArgs) -> String {
    match (&target.host, &target.socket) {
        (Some(host), _) => host.clone(),
        (None, Some(socket)) => format!("--socket {}", socket.display()),
        (None, None) => "--local".to_owned(),
    }
}

fn opened_json(opened: &Opened, challenge: &Challenge, took: Duration) -> serde_json::Value {
    json!({
        "session": opened.session,
        "host": challenge.hostname,
        "host_id": challenge.host_id,
        "account": opened.account,
        "ssh_port": opened.ssh_port,
        "ssh_host_keys": opened.ssh_host_keys,
        "ttl_seconds": opened.ttl_seconds,
        "deadline_boot_ns": opened.deadline_boot_ns,
        "tier": opened.tier,
        "agent_us": opened.agent_us,
        "answer_us": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "warnings": opened.warnings,
        "extended": opened.extended,
    })
}

fn status_json(status: &Status) -> serde_json::Value {
    json!({
        "host_id": status.host_id,
        "hostname": status.hostname,
        "state": status.state,
        "agent_version": status.agent_version,
        "tier": status.tier,
        "tier_reason": status.tier_reason,
        "account": status.account,
        "session": status.session,
        "operator": status.operator,
        "reason": status.reason,
        "remaining_seconds": status.remaining_seconds,
        "live_processes": status.live_processes,
        "spool_frames": status.spool_frames,
        "spool_bytes": status.spool_bytes,
        "last_seq": status.last_seq,
        "acked_seq": status.acked_seq,
        "collector_connected": status.collector_connected,
        "collector_error": status.collector_error,
        "records": status.records,
        "missing": status.missing,
    })
}

/// For people. What a host leaves out (to callers from elsewhere it says little) is not shown.
fn status_text(status: &Status) -> String {
    let mut lines =
        vec![("host", format!("{} ({})", status.hostname, status.host_id)), ("state", status.state.clone())];
    let mut add = |key, value: String| lines.push((key, value));
    if !status.session.is_empty() {
        add("session", status.session.clone());
        add("operator", status.operator.clone());
        add("reason", status.reason.clone());
        add("remaining", humantime::format_duration(Duration::from_secs(status.remaining_seconds)).to_string());
        add("processes", status.live_processes.to_string());
    }
    let why = if status.tier_reason.is_empty() { String::new() } else { format!(": {}", status.tier_reason) };
    add("recording", format!("{}{why}", status.tier));
    if !status.account.is_empty() {
        add("account", status.account.clone());
    }
    // Told only on the host itself; there is one count for each ring.
    if !status.records.is_empty() {
        add("records", format!("{}, missing {}", sum(&status.records), sum(&status.missing)));
        add("spool", format!("{} frames, {} bytes", status.spool_frames, status.spool_bytes));
        add("shipped", format!("{} of {}", status.acked_seq, status.last_seq));
        add("collector", if status.collector_connected { "connected".into() } else { status.collector_error.clone() });
    }
    add("agent", status.agent_version.clone());
    lines.iter().map(|(key, value)| format!("{key:<10} {}\n", plain(value))).collect()
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}
