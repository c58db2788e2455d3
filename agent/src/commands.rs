//! The agent's short commands: everything but `run`.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use breakglass_api::{
    CONTROL_MESSAGE_MAX,
    v1::{
        ControlRequest, ControlResponse, OpenRequest, Opened, Status, StatusRequest, StopRequest, control_request,
        control_response::Body as Answer,
    },
};
use prost::Message as _;

use crate::{
    account::{
        Account,
        keys::{self, Now},
    },
    config::{Config, ConfigError, default_server_name},
    doctor::{
        self,
        bypasses::{self, Catalogue},
    },
    enrol,
    evidence::keys::RENEW,
    identity,
    kernel::{self, Verdict},
};

/// How long the running agent may take to answer; opening may wait for the account's files.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Longest token read from standard input, bytes; one has 101 characters and a line end.
const TOKEN_MAX: u64 = 1024;

/// Prints the keys that may log in as `user`. Prints nothing on any doubt, and ends with success in any case: sshd reads an empty
/// answer as "no key", and logs a failing helper as an error of its configuration.
pub fn keys(runtime: &Path, user: &str) -> ExitCode {
    if let Some(lines) = Now::read().ok().and_then(|now| keys::keys_for(runtime, user, now)) {
        print!("{lines}");
    }
    ExitCode::SUCCESS
}

/// Locks the account; with `expired` only if no grant is live.
pub fn lock(path: &Path, expired: bool) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let account = Account::find(&config.account, &config.host.runtime)?;
    if expired && keys::live(&config.host.runtime, account.name(), Now::read()?).is_some() {
        println!("{} is left as it is: a grant is live", account.name());
        return Ok(ExitCode::SUCCESS);
    }
    account.lock()?;
    println!("{} is locked", account.name());
    Ok(ExitCode::SUCCESS)
}

/// Leaves word for the next start that a new host key is wanted.
pub fn rekey(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let folder = identity::keys_folder(&config.host.state);
    let wish = folder.join(RENEW);
    std::fs::write(&wish, "").with_context(|| {
        format!("cannot write {}: the folder is there once the agent ran, and root's", wish.display())
    })?;
    println!("the agent makes a new host key when it is started next");
    Ok(ExitCode::SUCCESS)
}

/// Joins a collector.
pub fn enroll(
    path: &Path,
    url: &str,
    token: &str,
    server_name: Option<String>,
    again: bool,
) -> anyhow::Result<ExitCode> {
    let config = load_or_default(path)?;
    let mut text = token.to_owned();
    if token == "-" {
        text.clear();
        std::io::stdin().take(TOKEN_MAX).read_to_string(&mut text).context("cannot read the token")?;
    }
    let known = config.collector.as_ref().map(|collector| collector.server_name.clone());
    let server_name = server_name.or(known).unwrap_or_else(default_server_name);
    let folder = &config.host.enrolment;
    let join = enrol::Join { url, server_name: &server_name, token: enrol::Token::parse(&text)?, folder, again };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (id, name) = runtime.block_on(enrol::join(&join))?;
    println!("this host is {name}, {id}; its certificate is in {}", folder.display());
    if config.collector.is_none() {
        println!(
            "put this into {}, then start the agent:\n\n[collector]\nurls = [{url:?}]\nserver_name = {server_name:?}",
            path.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn load_or_default(path: &Path) -> Result<Config, ConfigError> {
    match Config::load(path) {
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        loaded => loaded,
    }
}

/// How `doctor` is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct DoctorOptions {
    /// Print for programs.
    pub json: bool,
    /// Fail for what would keep operators out, too.
    pub strict: bool,
    /// Leave the kernel alone, which takes seconds to try.
    pub access: bool,
    /// Fail for known ways around the audit that are open here, too.
    pub closed: bool,
}

/// What `doctor --json` prints.
#[derive(serde::Serialize)]
struct Report {
    #[serde(flatten)]
    kernel: Option<kernel::Doctor>,
    access: Vec<doctor::Check>,
    bypasses: Vec<bypasses::Here>,
}

/// Prints what the kernel allows, and whether operators would get in.
pub fn doctor(path: &Path, options: DoctorOptions) -> anyhow::Result<ExitCode> {
    let config = load_or_default(path)?;
    let kernel = (!options.access).then(|| kernel::doctor(&kernel::Options::new(&config.kernel, 0)));
    let bypasses = match &kernel {
        Some(kernel) => Catalogue::read()?.in_tier(kernel.tier, &config.kernel),
        None => Vec::new(),
    };
    let report = Report { kernel, access: doctor::access(&config), bypasses };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        let kernel = report.kernel.as_ref().map(|kernel| doctor_text(kernel) + "\n").unwrap_or_default();
        print!("{kernel}{}", doctor::text(&report.access));
        if report.kernel.is_some() {
            print!("\n{}", bypasses::text(&report.bypasses));
        }
    }
    let enough = report.kernel.as_ref().is_none_or(|kernel| kernel.tier >= config.kernel.minimum_tier);
    if !enough && !options.json {
        println!("\nThe configuration asks for tier {}: this host would not open.", config.kernel.minimum_tier);
    }
    let shut = options.strict && report.access.iter().any(|check| check.state == doctor::State::Fail);
    let way_around = options.closed && bypasses::any_open(&report.bypasses);
    Ok(if enough && !shut && !way_around { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints every known way around the audit and what is promised about it.
pub fn bypasses(json: bool) -> anyhow::Result<ExitCode> {
    let catalogue = Catalogue::read()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&catalogue)?);
    } else {
        print!("{}", catalogue.text());
    }
    Ok(ExitCode::SUCCESS)
}

fn doctor_text(report: &kernel::Doctor) -> String {
    use std::fmt::Write as _;
    let mut text = format!("tier         {}\n", report.tier);
    // Writing to a string cannot fail.
    if !report.reason.is_empty() {
        let _ = writeln!(text, "why not more {}", report.reason);
    }
    let _ = writeln!(text, "kernel       {}", report.kernel_release);
    let _ = writeln!(text, "recording    {}\n", if report.recording { "yes" } else { "no" });
    for probe in &report.probes {
        let (state, why) = match &probe.verdict {
            Verdict::Works => ("works", ""),
            Verdict::Refused(why) => ("refused", why.as_str()),
            Verdict::Unknown(why) => ("unknown", why.as_str()),
        };
        let cost =
            probe.verified_instructions.map(|count| format!("{count} instructions verified")).unwrap_or_default();
        let _ = writeln!(text, "{state:<8} {:<20} {:<36} {why}{cost}", probe.program, probe.hook);
    }
    text
}

/// Prints where the running agent stands.
pub fn status(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let status = ask_status(socket).with_context(|| {
        format!("cannot ask the agent at {}; is it running? (systemctl status breakglass-agent)", socket.display())
    })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status_json(&status))?);
    } else {
        print!("{}", status_text(&status));
    }
    Ok(ExitCode::SUCCESS)
}

fn ask_status(socket: &Path) -> anyhow::Result<Status> {
    match ask(socket, control_request::Body::Status(StatusRequest {}))? {
        Answer::Status(status) => Ok(status),
        _ => bail!("the agent answered something else; it is of another version"),
    }
}

/// How long a stop may take: ending a session, comparing the host after it, and what the collector is still to get.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Pause between looks whether the agent has ended.
const STOP_PAUSE: Duration = Duration::from_millis(50);

/// Has the agent end, and waits until it has.
pub fn stop(reason: &str, force: bool, socket: &Path) -> anyhow::Result<ExitCode> {
    let request = StopRequest { reason: reason.to_owned(), force };
    let answer = ask(socket, control_request::Body::Stop(request)).with_context(|| {
        format!("the agent at {} was not stopped (is it running? systemctl status breakglass-agent)", socket.display())
    })?;
    let Answer::Stopping(stopping) = answer else {
        bail!("the agent answered something else; it is of another version")
    };
    let until = Instant::now() + STOP_LIMIT;
    // The socket goes first, the agent soon after: whoever starts another one has to wait for its lock in any case.
    while UnixStream::connect(socket).is_ok() {
        if Instant::now() > until {
            bail!(
                "the stop is on record and the account locked, but the agent has not ended within {STOP_LIMIT:?}; its log says why"
            );
        }
        std::thread::sleep(STOP_PAUSE);
    }
    if !stopping.session.is_empty() {
        println!("session {} was ended", stopping.session);
    }
    println!("the agent is stopped and the account locked; nobody can break the glass until it is started again");
    Ok(ExitCode::SUCCESS)
}

/// What the line of a prepared grant begins with.
const GRANT: &str = "breakglass-grant:";

/// Hands in a grant that was signed ahead.
pub fn open(grant: &Path, socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let request = carried(grant)?;
    let answer = ask(socket, control_request::Body::Open(request)).with_context(|| {
        format!("the agent at {} did not open (is it running? systemctl status breakglass-agent)", socket.display())
    })?;
    let Answer::Opened(opened) = answer else { bail!("the agent answered something else; it is of another version") };
    match json {
        true => println!("{}", opened_json(&opened)),
        false => print!("{}", opened_text(&opened)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The grant in a file, or in what a console or a chat made of it.
fn carried(path: &Path) -> anyhow::Result<OpenRequest> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(CONTROL_MESSAGE_MAX as u64).read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|file| file.take(CONTROL_MESSAGE_MAX as u64).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    let word = text.split_ascii_whitespace().find_map(|word| word.strip_prefix(GRANT));
    let word =
        word.with_context(|| format!("{}: no grant; it is one line that begins with {GRANT}", path.display()))?;
    let bytes = URL_SAFE_NO_PAD.decode(word).ok().and_then(|bytes| OpenRequest::decode(bytes.as_slice()).ok());
    bytes.with_context(|| format!("{}: the grant is damaged; was all of its line carried?", path.display()))
}

fn opened_json(opened: &Opened) -> serde_json::Value {
    serde_json::json!({
        "session": opened.session,
        "account": opened.account,
        "ttl_seconds": opened.ttl_seconds,
        "ssh_port": opened.ssh_port,
        "tier": opened.tier,
        "warnings": opened.warnings,
        "extended": opened.extended,
    })
}

fn opened_text(opened: &Opened) -> String {
    let ttl = humantime::format_duration(Duration::from_secs(opened.ttl_seconds));
    let mut text = format!("The glass is broken for {ttl}: session {}\n", opened.session);
    for warning in &opened.warnings {
        text.push_str(&format!("Warning: {}\n", warning.escape_debug()));
    }
    text.push_str(&format!(
        "The key that signed logs in: ssh -p {} {}@localhost\n",
        opened.ssh_port,
        opened.account.escape_debug()
    ));
    text
}

/// Sends one request to the agent and reads its answer; a refusal is an error.
fn ask(socket: &Path, body: control_request::Body) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    let request = ControlRequest { body: Some(body) }.encode_to_vec();
    stream.write_all(&u32::try_from(request.len())?.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > CONTROL_MESSAGE_MAX {
        bail!("an answer of {length} bytes is above the limit of {CONTROL_MESSAGE_MAX}");
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    match ControlResponse::decode(answer.as_slice())?.body {
        Some(Answer::Refused(refused)) => bail!("{} ({})", refused.message, refused.code),
        Some(answer) => Ok(answer),
        None => bail!("the agent's answer is empty; it is of another version"),
    }
}

fn status_json(status: &Status) -> serde_json::Value {
    serde_json::json!({
        "host_id": status.host_id,
        "hostname": status.hostname,
        "state": status.state,
        "account": status.account,
        "agent_version": status.agent_version,
        "tier": status.tier,
        "tier_reason": status.tier_reason,
        "session": (!status.session.is_empty()).then_some(&status.session),
        "operator": (!status.operator.is_empty()).then_some(&status.operator),
        "reason": (!status.reason.is_empty()).then_some(&status.reason),
        "remaining_seconds": status.remaining_seconds,
        "live_processes": status.live_processes,
        "spool_frames": status.spool_frames,
        "spool_bytes": status.spool_bytes,
        "spool_in_memory": (!status.spool_in_memory.is_empty()).then_some(&status.spool_in_memory),
        "last_seq": status.last_seq,
        "durable_boot_ns": status.durable_boot_ns,
        "acked_seq": status.acked_seq,
        "acked_boot_ns": status.acked_boot_ns,
        "collector_connected": status.collector_connected,
        "collector_error": (!status.collector_error.is_empty()).then_some(&status.collector_error),
        "door_error": (!status.door_error.is_empty()).then_some(&status.door_error),
        "records": status.records,
        "missing": status.missing,
    })
}

fn status_text(status: &Status) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("host", format!("{} ({})", status.hostname, status.host_id));
    line("glass", status.state.clone());
    line("account", status.account.clone());
    let tier = match status.tier_reason.as_str() {
        "" => status.tier.clone(),
        reason => format!("{} ({reason})", status.tier),
    };
    line("tier", tier);
    if !status.session.is_empty() {
        line("session", status.session.clone());
        line("operator", status.operator.escape_debug().to_string());
        line("reason", status.reason.escape_debug().to_string());
        line("remaining", humantime::format_duration(Duration::from_secs(status.remaining_seconds)).to_string());
        line("processes", status.live_processes.to_string());
    }
    if !status.door_error.is_empty() {
        line("TLS", format!("CLOSED: {}", status.door_error));
    }
    line("frames", format!("{} durable, {} acknowledged", status.last_seq, status.acked_seq));
    line("spool", format!("{} frames, {} bytes", status.spool_frames, status.spool_bytes));
    if !status.spool_in_memory.is_empty() {
        line("", format!("NOT ON DISK: {}", status.spool_in_memory));
    }
    let collector = match (status.collector_connected, status.collector_error.as_str()) {
        (true, "") => "connected".to_owned(),
        (true, error) => format!("connected, but {error}"),
        (false, "") => "none".to_owned(),
        (false, error) => format!("not connected: {error}"),
    };
    line("collector", collector);
    let missing: u64 = status.missing.iter().sum();
    line("records", format!("{} from the kernel, {missing} missing", status.records.iter().sum::<u64>()));
    line("version", status.agent_version.clone());
    text
}
