//! Consent of further people, where a host asks for several: `breakglass open` prints a request, `breakglass cosign` makes a
//! co-signature of it on any machine, and `open` carries that to the host.
//!
//! Both are one line, so that they survive a chat: `breakglass-request:` and the text that all sign, `breakglass-cosignature:` and a
//! [`Cosignature`] message, each in base64 for URLs without padding. Neither is a secret: a request opens nothing, and a co-signature
//! opens nothing without the operator's own signature over the same text.

use std::{
    io::{BufRead, IsTerminal, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use breakglass_api::{
    COSIGN_NAMESPACE,
    grant::{Request as Text, many::MANY_TEXT_MAX},
    v1::Cosignature,
};
use clap::Args;
use prost::Message;
use serde::Serialize;

use super::{
    Tools,
    failure::{Failure, plain},
    operator, print_object, print_out, say, say_touch, sign,
};
use crate::config::Config;

const REQUEST: &str = "breakglass-request:";
const COSIGNATURE: &str = "breakglass-cosignature:";

/// Longest input that is looked at, bytes: a few co-signatures with room for what a chat puts around them.
const INPUT_MAX: u64 = 64 * 1024;

/// Arguments of `cosign`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  breakglass cosign breakglass-request:YnJlYWtnbGFzcy1ncmFudCB2MQo…\n  \
                        breakglass cosign < request.txt > bob.cosignature\n\n\
                        It says what is asked for before it signs. Nothing is sent anywhere: hand the printed line back to who asked.")]
pub struct CosignArgs {
    /// What `breakglass open` printed; read from standard input where left out.
    pub request: Option<String>,
    /// SSH key that signs.
    #[arg(long, short, value_name = "KEY")]
    pub identity: Option<PathBuf>,
    /// Who you are in the host's allowed_signers, in place of operator.name.
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// Do not ask before signing.
    #[arg(long, short)]
    pub yes: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    r#type: &'static str,
    operator: &'a str,
    cosignature: &'a str,
}

pub(super) async fn cosign(args: &CosignArgs, config: &Config, tools: &Tools, json: bool) -> Result<u8, Failure> {
    let asked = match &args.request {
        Some(request) => request.clone(),
        None => read_all(std::io::stdin().lock())?,
    };
    let text = request_in(&asked)?;
    let principal = operator(args.operator.as_deref(), config)?;
    let identity = sign::identity(args.identity.as_deref(), config)?;
    say(&described(&text));
    if text.operator() == principal {
        return Err(Failure::Usage(format!("this is {principal}'s own request; somebody else must co-sign it")));
    }
    if !args.yes && tools.interactive && !confirmed()? {
        return Err(Failure::Other("not signed".into()));
    }
    say_touch(&identity);
    let encoded = text.encode().map_err(|e| Failure::Usage(format!("the request cannot be signed: {e}")))?;
    let signature = sign::sign(&tools.ssh_keygen, &identity, COSIGN_NAMESPACE, &encoded).await?;
    let cosignature = Cosignature { principal, signature };
    let made = line(COSIGNATURE, &cosignature.encode_to_vec());
    match json {
        true => print_object(&Told { r#type: "cosignature", operator: &cosignature.principal, cosignature: &made })?,
        false => print_out(&format!("{made}\n"))?,
    }
    Ok(0)
}

/// What a host, or several together, ask of those who sign.
pub(super) struct Asked {
    /// How many people.
    pub signers: u32,
    /// Within how many seconds; 0: whenever they like.
    pub seconds: u32,
}

/// The co-signatures that the host asks for: from files, and, at a terminal, as they are pasted.
pub(super) fn gather(
    files: &[PathBuf],
    save: Option<&Path>,
    asked: &Asked,
    text: &str,
    interactive: bool,
) -> Result<Vec<Cosignature>, Failure> {
    let needed = usize::try_from(asked.signers).unwrap_or(usize::MAX).saturating_sub(1);
    let mut found = Vec::new();
    for file in files {
        let content = std::fs::File::open(file).map_err(|e| Failure::Usage(format!("{}: {e}", file.display())))?;
        found.extend(cosignatures_in(&read_all(content)?)?);
    }
    if found.len() >= needed {
        return Ok(found);
    }
    let request = line(REQUEST, text.as_bytes());
    let within = match asked.seconds {
        0 => String::new(),
        seconds => format!("within {}, ", humantime::format_duration(Duration::from_secs(seconds.into()))),
    };
    say(&format!(
        "{} people have to sign together: co-signatures {} of {needed}. To have the rest, {within}have this co-signed:",
        needed + 1,
        found.len(),
    ));
    say(&format!("\n  breakglass cosign {request}\n"));
    if let Some(path) = save {
        std::fs::write(path, format!("{request}\n")).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))?;
    }
    if !interactive {
        return Err(Failure::Usage(
            "co-signatures are missing; give them with --request FILE --cosignature FILE (--save-request FILE writes the request)".into(),
        ));
    }
    paste(&mut found, needed)?;
    Ok(found)
}

/// The text of an earlier `--save-request`.
pub(super) fn saved_request(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
    let text = request_in(&read_all(file)?)?;
    text.encode().map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))
}

fn paste(found: &mut Vec<Cosignature>, needed: usize) -> Result<(), Failure> {
    let mut lines = std::io::stdin().lock().lines();
    while found.len() < needed {
        say(&format!("Paste a co-signature ({} of {needed}):", found.len() + 1));
        let line =
            lines.next().and_then(Result::ok).ok_or_else(|| Failure::Other("no co-signature was given".into()))?;
        match cosignatures_in(&line) {
            Ok(more) => {
                more.iter().for_each(|one| say(&format!("  co-signed by {}", plain(&one.principal))));
                found.extend(more);
                say(&format!("Co-signatures: {} of {needed}", found.len()));
            }
            Err(failure) => say(&failure.to_string()),
        }
    }
    Ok(())
}

fn line(head: &str, content: &[u8]) -> String {
    format!("{head}{}", URL_SAFE_NO_PAD.encode(content))
}

pub(super) fn read_all(from: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(INPUT_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Failure::Usage(format!("the input cannot be read: {e}")))?;
    Ok(text)
}

/// What follows `head` in every word that begins with it.
pub(super) fn contents(text: &str, head: &str) -> Vec<Vec<u8>> {
    let words = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(head));
    words
        .filter(|word| !word.is_empty())
        .filter_map(|word| URL_SAFE_NO_PAD.decode(word.trim_end_matches(['.', ',', '`', '\''])).ok())
        .collect()
}

fn request_in(text: &str) -> Result<Text, Failure> {
    let found = contents(text, REQUEST);
    let bytes = found
        .first()
        .filter(|bytes| bytes.len() <= MANY_TEXT_MAX)
        .ok_or_else(|| Failure::Usage(format!("no request was found; it is one line that begins with {REQUEST}")))?;
    Text::parse(bytes).map_err(|e| Failure::Usage(format!("the request is damaged: {e}")))
}

fn cosignatures_in(text: &str) -> Result<Vec<Cosignature>, Failure> {
    let found: Result<Vec<_>, _> =
        contents(text, COSIGNATURE).iter().map(|c| Cosignature::decode(c.as_slice())).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Failure::Usage(format!("no co-signature was found; it is one line that begins with {COSIGNATURE}"))),
    }
}

/// What is asked for, for the eyes of who is to consent.
fn described(text: &Text) -> String {
    let ttl = |seconds: u64| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let hosts: Vec<String> = text.host_names().into_iter().map(plain).collect();
    let mut lines = vec![format!("{} wants to break the glass on {}", plain(text.operator()), hosts.join(", "))];
    let mut add = |name: &str, value: &str| lines.push(format!("  {name:<9} {}", plain(value)));
    add("because", text.reason());
    let (ticket, seconds, client_time) = match text {
        Text::One(text) => (&text.ticket, text.ttl_seconds, &text.client_time),
        Text::Many(text) => (&text.ticket, text.ttl_seconds, &text.client_time),
        Text::Prepared(text) => (&text.ticket, text.ttl_seconds, &text.client_time),
    };
    add("for", &ttl(seconds));
    if !ticket.is_empty() {
        add("ticket", ticket);
    }
    add("asked at", client_time);
    if let Text::Prepared(text) = text {
        add("once from", &text.not_before);
        add("to", &text.not_after);
    }
    lines.join("\n")
}

fn confirmed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("somebody has to be asked: give the request as an argument, or --yes".into()));
    }
    say("Co-sign this? [y/N]");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::Other(format!("no answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_a_chat() {
        let cosignature = Cosignature { principal: "bob".into(), signature: b"sig".to_vec() };
        let sent = line(COSIGNATURE, &cosignature.encode_to_vec());
        for around in [sent.clone(), format!("here you are:\n  {sent}\n"), format!("{sent}, ok?")] {
            assert_eq!(cosignatures_in(&around).unwrap(), std::slice::from_ref(&cosignature), "{around}");
        }
        for bad in ["", "breakglass-cosignature:", "breakglass-cosignature:!!", "breakglass-request:YQ"] {
            assert!(cosignatures_in(bad).is_err(), "{bad}");
        }
        assert!(request_in("breakglass-request:YQ").unwrap_err().to_string().contains("damaged"));
    }
}
