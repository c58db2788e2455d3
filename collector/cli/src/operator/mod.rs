//! What operators do: break the glass, close, look how a host stands.

mod again;
mod client;
mod code;
mod cosign;
pub(crate) mod failure;
mod kex;
mod login;
mod many;
mod prepare;
pub(crate) mod sign;
mod status;
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
        Challenge, ChallengeRequest, CloseRequest, Closed, OpenRequest, Opened, control_request::Body as Request,
        control_response::Body as Answer,
    },
};
use clap::Args;
use serde::Serialize;
use serde_json::json;

pub use self::{again::LoginArgs, cosign::CosignArgs, many::SOME, prepare::PrepareArgs};
use self::{
    client::Client,
    failure::{Failure, plain},
    target::{Door, Target, TargetArgs},
};
use crate::{config::Config, print};

/// Arguments of `open`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  breakglass open web1 --reason 'database down, SSO unreachable' --ttl 30m\n  \
                        breakglass open web1 --reason 'restart nginx' --close-on-exit -- sudo systemctl restart nginx\n  \
                        breakglass open web1 web2 db1 --reason 'the cluster is down' --login db1\n  \
                        breakglass open --local --reason 'on the console already'\n  \
                        breakglass open --local --grant web1.grant\n\n\
                        Several hosts are opened under one signature; then you are logged in to the first. It exits with what ssh ended with, \
                        or with 7 if some of several hosts are not open.")]
pub struct OpenArgs {
    /// Which hosts.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Why. It is signed, recorded, and read by the security team.
    #[arg(long, short, required_unless_present_any = ["request", "grant"])]
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
    /// A grant that was prepared for this host, as breakglass prepare wrote it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reason", "ticket", "ttl", "close_on_exit", "code", "request", "save_request", "cosignature"])]
    pub grant: Option<PathBuf>,
    /// Of several hosts, the one to log in to; the first where left out.
    #[arg(long, value_name = "HOST")]
    pub login: Option<String>,
    /// End the session when its last process ends.
    #[arg(long)]
    pub close_on_exit: bool,
    /// Do not log in.
    #[arg(long)]
    pub no_ssh: bool,
    /// Whether `--json` was given, before the command or behind it; [`crate::cli`] says so.
    #[arg(skip)]
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
#[command(
    after_help = "Examples:\n  breakglass close web1\n  breakglass close web1 web2 db1\n  sudo breakglass close --local"
)]
pub struct CloseArgs {
    /// Which hosts.
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
    /// Whether `--json` was given, before the command or behind it; [`crate::cli`] says so.
    #[arg(skip)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  breakglass status web1\n  breakglass status web1 web2 db1 --json\n  breakglass status --local"
)]
pub struct StatusArgs {
    /// Which hosts.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Whether `--json` was given, before the command or behind it; [`crate::cli`] says so.
    #[arg(skip)]
    pub json: bool,
}

/// The programs that do what only they should.
struct Tools {
    ssh: OsString,
    ssh_keygen: OsString,
    /// Whether somebody is there to be asked.
    interactive: bool,
    /// Where it is kept how to log in again; absent: nowhere.
    kept: Option<PathBuf>,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            ssh: "ssh".into(),
            ssh_keygen: "ssh-keygen".into(),
            interactive: std::io::stdin().is_terminal(),
            kept: again::folder(),
        }
    }
}

/// Breaks the glass and logs in; exits with what ssh ended with.
pub async fn run_open(args: &OpenArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(open(args, config, &Tools::default()).await, args.json))
}

/// Logs in to a host that was opened from here.
pub async fn run_login(args: &LoginArgs, config: &Config, json: bool) -> anyhow::Result<u8> {
    Ok(finish(again::login(args, config, &Tools::default()).await, json))
}

/// Signs a grant ahead.
pub async fn run_prepare(args: &PrepareArgs, config: &Config, json: bool) -> anyhow::Result<u8> {
    Ok(finish(prepare::prepare(args, config, &Tools::default(), json).await, json))
}

/// Consents to somebody else's request.
pub async fn run_cosign(args: &CosignArgs, config: &Config, json: bool) -> anyhow::Result<u8> {
    Ok(finish(cosign::cosign(args, config, &Tools::default(), json).await, json))
}

/// Closes a session.
pub async fn run_close(args: &CloseArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(close(args, config, &Tools::default()).await, args.json))
}

/// Shows how a host stands.
pub async fn run_status(args: &StatusArgs, config: &Config) -> anyhow::Result<u8> {
    Ok(finish(status::status(args, config).await, args.json))
}

fn finish(result: Result<u8, Failure>, json: bool) -> u8 {
    match result {
        Ok(code) => code,
        Err(failure) => {
            say(&format!("breakglass: {failure}"));
            if json {
                tell_json(&json!({ "error": { "code": failure.code(), "message": failure.to_string() } }));
            }
            failure.exit_code()
        }
    }
}

/// A line for the person; standard output is for programs.
fn say(line: &str) {
    print::note(line);
}

/// What the command was asked for, on standard output.
fn print_out(text: &str) -> Result<(), Failure> {
    print::out(text).map_err(|error| Failure::Other(format!("cannot write to standard output: {error}")))
}

/// As [`print_out`], as one line of JSON.
fn print_object(told: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(told).map_err(|error| Failure::Other(format!("this is not JSON: {error}")))?;
    print_out(&format!("{line}\n"))
}

/// A line of JSON about something that is done. Nothing is left undone because it cannot be printed.
fn tell_json(value: &serde_json::Value) {
    if let Err(failure) = print_out(&format!("{value}\n")) {
        say(&format!("Warning: {failure}"));
    }
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
    let targets = args.target.resolve_all(config)?;
    let target = match targets.as_slice() {
        [only] => only,
        several if args.code || args.grant.is_some() => {
            return Err(Failure::Usage(format!(
                "a code or a prepared grant is for one host, and {} are named",
                several.len()
            )));
        }
        several => return many::open(args, config, tools, several).await,
    };
    let kex = ask_kex(args, config, tools);
    let proved = if args.code {
        prove_by_code(args, config, target).await?
    } else if let Some(path) = &args.grant {
        prove_by_grant(args, config, target, path).await?
    } else {
        prove(args, config, tools, target).await?
    };
    let opened = &proved.opened;
    announce(opened, target, args.verbose.then_some(proved.took));
    if args.json {
        tell_json(&opened_json(opened, &proved.challenge, proved.took));
    }
    let Some(identity) = proved.identity else { return Ok(0) };
    again::keep(tools, target, opened, &identity);
    if args.no_ssh {
        return Ok(0);
    }
    let code = finish_login(args, tools, target, opened, &identity, kex).await?;
    if !args.close_on_exit {
        say(&format!(
            "The session stays open until its deadline; to log in again: breakglass login {0}; to end it now: breakglass close {0}",
            addressed(target)
        ));
    }
    Ok(code)
}

/// What `ssh` is to prefer, asked while the proof is made: it is another program's start.
type Kex = Option<tokio::task::JoinHandle<Option<String>>>;

fn ask_kex(args: &OpenArgs, config: &Config, tools: &Tools) -> Kex {
    (config.operator.fast_key_exchange && !args.no_ssh).then(|| tokio::spawn(kex::option(tools.ssh.clone())))
}

/// Logs in to a host that has just been opened; returns ssh's exit code.
async fn finish_login(
    args: &OpenArgs,
    tools: &Tools,
    target: &Target,
    opened: &Opened,
    identity: &Path,
    kex: Kex,
) -> Result<u8, Failure> {
    let kex = match kex {
        Some(asking) => asking.await.ok().flatten(),
        None => None,
    };
    login::login(&tools.ssh, target, opened, &sign::login_key(identity), kex, &args.command).await
}

/// Does the same to each of several hosts, and exits with [`SOME`] if it failed on some; what failed is said.
async fn each(
    targets: &[Target],
    as_json: bool,
    act: impl AsyncFn(&Target) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    if let [only] = targets {
        return act(only).await.map(|()| 0);
    }
    let mut failed = Vec::new();
    for target in targets {
        if let Err(failure) = act(target).await {
            say(&format!("{}: {failure}", plain(&target.name)));
            if as_json {
                let error = json!({ "code": failure.code(), "message": failure.to_string() });
                tell_json(&json!({ "host": target.name, "error": error }));
            }
            failed.push(failure);
        }
    }
    match failed.first() {
        None => Ok(0),
        Some(first) if failed.len() == targets.len() => Ok(first.exit_code()),
        Some(_) => Ok(SOME),
    }
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
    let asked = cosign::Asked { signers: challenge.required_signers, seconds: challenge.valid_seconds };
    let cosignatures = cosign::gather(&args.cosignature, save, &asked, &text, tools.interactive)?;
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

/// What somebody carried here.
async fn prove_by_grant(args: &OpenArgs, config: &Config, target: &Target, path: &Path) -> Result<Proved, Failure> {
    let (request, text) = prepare::carried(path)?;
    say(&format!("A grant for {}, signed ahead by {}", plain(&text.host_name), plain(&text.operator)));
    let identity = match sign::identity(args.identity.as_deref(), config) {
        Err(_) if args.no_ssh && args.identity.is_none() => None,
        found => Some(found?),
    };
    let mut client = Client::connect(target).await?;
    let challenge = challenge(&mut client).await?;
    let asked = Instant::now();
    let Answer::Opened(opened) = client.ask(Request::Open(request)).await? else { return Err(client.unexpected()) };
    Ok(Proved { opened, challenge, took: asked.elapsed(), identity })
}

async fn close(args: &CloseArgs, config: &Config, tools: &Tools) -> Result<u8, Failure> {
    let targets = args.target.resolve_all(config)?;
    if targets.len() > 1 && !args.session.is_empty() {
        return Err(Failure::Usage("a session is on one host, and several are named".into()));
    }
    each(&targets, args.json, async |target| close_one(args, config, tools, target).await).await
}

async fn close_one(args: &CloseArgs, config: &Config, tools: &Tools, target: &Target) -> Result<(), Failure> {
    let mut client = Client::connect(target).await?;
    let local = matches!(target.door, Door::Socket(_));
    let request = if local && args.session.is_empty() && nix::unistd::geteuid().is_root() {
        CloseRequest::default()
    } else {
        signed_close(args, config, tools, &mut client).await?
    };
    let Answer::Closed(closed) = client.ask(Request::Close(request)).await? else { return Err(client.unexpected()) };
    say_closed(&closed, target);
    if args.json {
        let (killed, survivors) = (closed.killed, closed.survivors);
        tell_json(&json!({ "host": target.name, "session": closed.session, "killed": killed, "survivors": survivors }));
    }
    Ok(())
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

async fn challenge(client: &mut Client<'_>) -> Result<Challenge, Failure> {
    match client.ask(Request::Challenge(ChallengeRequest::default())).await? {
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
fn addressed(target: &Target) -> String {
    match (&target.door, target.named) {
        (_, true) => target.name.clone(),
        (Door::Socket(path), false) => format!("--socket {}", path.display()),
        (Door::Tls { address, .. }, false) => format!("--address {address}"),
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
