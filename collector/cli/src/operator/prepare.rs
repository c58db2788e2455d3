//! A grant that is signed ahead and carried by hand to a host that cannot be reached: [`breakglass_api::grant::prepared`].
//!
//! It is one line, `breakglass-grant:` and an [`OpenRequest`] in base64 for URLs without padding, so that it survives a chat, a serial
//! console and a memory stick. Whoever has it can use it once, on its host, while its window is open: keep it as a key is kept.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use breakglass_api::{
    PREPARED_NAMESPACE,
    grant::{PreparedText, Request as Text},
    v1::OpenRequest,
};
use clap::Args;
use prost::Message;
use serde::Serialize;

use super::{
    Tools, client_time, cosign,
    failure::{Failure, plain},
    operator, print_object, print_out, say, say_touch, sign,
};
use crate::config::Config;

/// What the line begins with.
pub(super) const GRANT: &str = "breakglass-grant:";

/// Arguments of `prepare`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  breakglass prepare web1 --host-id 0b5e9a52-… --reason 'no network in cage 4' > web1.grant\n  \
                        breakglass prepare web1 --reason 'planned drill' --valid-for 3h --output web1.grant\n\n\
                        On the host's console, once: breakglass-agent open --grant web1.grant"
)]
pub struct PrepareArgs {
    /// The host's name.
    #[arg(value_name = "HOST")]
    pub host: String,
    /// The host's id, as `breakglass status HOST` showed it; hosts.HOST.id of the configuration where left out.
    #[arg(long, value_name = "ID")]
    pub host_id: Option<String>,
    /// Why. It is signed, recorded, and read by the security team.
    #[arg(long, short, required_unless_present = "request")]
    pub reason: Option<String>,
    /// The incident's number.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub ticket: String,
    /// How long the session may be.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30m")]
    pub ttl: Duration,
    /// How long, from now on, the grant can be used, by the host's clock.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "24h")]
    pub valid_for: Duration,
    /// End the session when its last process ends.
    #[arg(long)]
    pub close_on_exit: bool,
    /// SSH key that signs, and logs in.
    #[arg(long, short, value_name = "KEY")]
    pub identity: Option<PathBuf>,
    /// Who you are in the host's allowed_signers, in place of operator.name.
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// How many people the host opens for; ask for their co-signatures.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub signers: u32,
    /// A file with a co-signature; once for each.
    #[arg(long, value_name = "FILE")]
    pub cosignature: Vec<PathBuf>,
    /// The request that was co-signed, as --save-request wrote it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reason", "ticket", "close_on_exit", "save_request"])]
    pub request: Option<PathBuf>,
    /// Write the request that others are to co-sign to this file, too.
    #[arg(long, value_name = "FILE")]
    pub save_request: Option<PathBuf>,
    /// Write the grant to this file, which only you can read, in place of standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Clocks differ: the window begins so much before now.
const EARLIER: Duration = Duration::from_secs(15 * 60);

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    r#type: &'static str,
    host: &'a str,
    /// Absent where it is in a file.
    grant: Option<&'a str>,
    file: Option<&'a Path>,
}

pub(super) async fn prepare(args: &PrepareArgs, config: &Config, tools: &Tools, json: bool) -> Result<u8, Failure> {
    let identity = sign::identity(args.identity.as_deref(), config)?;
    let operator = operator(args.operator.as_deref(), config)?;
    let text = match &args.request {
        Some(path) => cosign::saved_request(path)?,
        None => text(args, operator, config)?,
    };
    let asked = cosign::Asked { signers: args.signers, seconds: 0 };
    let cosignatures =
        cosign::gather(&args.cosignature, args.save_request.as_deref(), &asked, &text, tools.interactive)?;
    say_touch(&identity);
    let signature = sign::sign(&tools.ssh_keygen, &identity, PREPARED_NAMESPACE, &text).await?;
    let request = OpenRequest { grant_text: text.into_bytes(), signature, cosignatures };
    let grant = format!("{GRANT}{}", URL_SAFE_NO_PAD.encode(request.encode_to_vec()));
    let file = args.output.as_deref();
    if let Some(path) = file {
        write(path, &format!("{grant}\n"))?;
    }
    if json {
        let grant = file.is_none().then_some(grant.as_str());
        print_object(&Told { r#type: "grant", host: &args.host, grant, file })?;
    } else if file.is_none() {
        print_out(&format!("{grant}\n"))?;
    }
    say(&format!(
        "Carry it to {} and use it there, once, within {}: breakglass-agent open --grant FILE",
        plain(&args.host),
        humantime::format_duration(args.valid_for)
    ));
    say("Whoever has it can use it; it opens for your key.");
    Ok(0)
}

fn text(args: &PrepareArgs, operator: String, config: &Config) -> Result<String, Failure> {
    let configured = config.hosts.get(&args.host).and_then(|host| host.id.clone());
    let host_id = args.host_id.clone().or(configured).ok_or_else(|| {
        Failure::Usage(format!(
            "the id of {0} is not known: give --host-id, or set hosts.{0}.id; breakglass status and breakglass hosts show it",
            args.host
        ))
    })?;
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    let now = SystemTime::now();
    let text = PreparedText {
        host_id,
        host_name: args.host.clone(),
        number: rand::random(),
        operator,
        reason: args.reason.as_deref().unwrap_or_default().trim().to_owned(),
        ticket: args.ticket.trim().to_owned(),
        ttl_seconds: args.ttl.as_secs(),
        close_on_exit: args.close_on_exit,
        not_before: time(now - EARLIER),
        not_after: time(now + args.valid_for),
        client_time: client_time(),
    };
    text.encode().map_err(|e| Failure::Usage(format!("this cannot be asked for: {e}")))
}

fn write(path: &Path, line: &str) -> Result<(), Failure> {
    let file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|e| Failure::Other(format!("{}: {e}", path.display())))
}

/// The grant in a file, or in what a console or a chat made of it.
pub(super) fn carried(path: &Path) -> Result<(OpenRequest, PreparedText), Failure> {
    let unusable = |what: &str| Failure::Usage(format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| unusable(&e.to_string()))?;
    let content = cosign::contents(&cosign::read_all(file)?, GRANT);
    let bytes =
        content.first().ok_or_else(|| unusable(&format!("no grant; it is one line that begins with {GRANT}")))?;
    let request = OpenRequest::decode(bytes.as_slice()).map_err(|_| unusable("the grant is damaged"))?;
    match Text::parse(&request.grant_text) {
        Ok(Text::Prepared(text)) => Ok((request, text)),
        Ok(_) => Err(unusable("this was not prepared to be carried; use breakglass open")),
        Err(error) => Err(unusable(&format!("the grant is damaged: {error}"))),
    }
}
