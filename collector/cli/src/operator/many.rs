//! Several hosts at once under one signature: [`breakglass_api::grant::many`].
//!
//! Every host is asked for its challenge, all at once; one text names them all; the operator signs once; every host gets the same
//! request and judges for itself. A host that cannot be reached, or refuses, keeps none of the others: it is said, and the command's exit
//! code says that not all are open.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use breakglass_api::{
    GRANT_NAMESPACE,
    grant::{GrantText, ManyText, Place, Request as Text},
    v1::{
        Challenge, ChallengeRequest, OpenRequest, Opened, control_request::Body as Request,
        control_response::Body as Answer,
    },
};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use serde_json::json;

use super::{
    OpenArgs, Tools, again, announce, ask_kex, claim,
    client::Client,
    client_time, cosign,
    failure::{Failure, plain},
    finish_login, opened_json, operator, say, say_touch, sign,
    target::Target,
    tell_json,
};
use crate::config::Config;

/// What the command exits with where some of several hosts are open and some are not.
pub const SOME: u8 = 7;

/// A host that answered.
struct Part<'a> {
    target: &'a Target,
    client: Client<'a>,
    challenge: Challenge,
}

pub(super) async fn open(args: &OpenArgs, config: &Config, tools: &Tools, targets: &[Target]) -> Result<u8, Failure> {
    let login = chosen(args, targets)?;
    let kex = ask_kex(args, config, tools);
    let identity = sign::identity(args.identity.as_deref(), config)?;
    let operator = operator(args.operator.as_deref(), config)?;
    say(&format!("Asking {} hosts …", targets.len()));
    let (mut parts, mut failures) = reach(targets, args.json).await;
    if parts.is_empty() {
        return Err(Failure::NoneOpen { code: failures.first().map_or(1, Failure::exit_code) });
    }
    distinct(&parts)?;
    same_time(&mut parts).await?;
    let text = match &args.request {
        Some(path) => cosign::saved_request(path)?,
        None => text(args, operator, &parts)?,
    };
    let save = args.save_request.as_deref();
    let asked = asked(&parts);
    let cosignatures = cosign::gather(&args.cosignature, save, &asked, &text, tools.interactive)?;
    say_touch(&identity);
    let signature = sign::sign(&tools.ssh_keygen, &identity, GRANT_NAMESPACE, &text).await?;
    let request = OpenRequest { grant_text: text.into_bytes(), signature, cosignatures };
    let (mut opened, refused) = hand_in(parts, &request, args).await;
    failures.extend(refused);
    if opened.is_empty() {
        return Err(Failure::NoneOpen { code: failures.first().map_or(1, Failure::exit_code) });
    }
    for (target, opened) in opened.values() {
        again::keep(tools, target, opened, &identity);
    }
    say(&format!("{} of {} hosts are open", opened.len(), targets.len()));
    let code = match opened.remove(&login).filter(|_| !args.no_ssh) {
        Some((target, one)) => {
            say(&format!("Logging in to {login}; to the others: breakglass login HOST"));
            let code = finish_login(args, tools, target, &one, &identity, kex).await?;
            opened.insert(login, (target, one));
            code
        }
        None => {
            if !args.no_ssh {
                say(&format!("{login} is not open; to the others: breakglass login HOST"));
            }
            0
        }
    };
    if !args.close_on_exit {
        let mut names: Vec<&str> = opened.keys().map(String::as_str).collect();
        names.sort_unstable();
        say(&format!(
            "The sessions stay open until their deadlines; to end them now: breakglass close {}",
            names.join(" ")
        ));
    }
    Ok(if failures.is_empty() { code } else { SOME })
}

/// Where to log in: as said, or the first one.
fn chosen(args: &OpenArgs, targets: &[Target]) -> Result<String, Failure> {
    let name = args.login.as_ref().or(targets.first().map(|target| &target.name)).cloned().unwrap_or_default();
    match targets.iter().any(|target| target.name == name) {
        true => Ok(name),
        false => Err(Failure::Usage(format!("--login {name}: it is not one of the hosts that are to be opened"))),
    }
}

/// Challenges of all hosts, and what kept the others from giving one, which is said.
async fn reach(targets: &[Target], as_json: bool) -> (Vec<Part<'_>>, Vec<Failure>) {
    let asking = targets.iter().map(|target| async move {
        let mut client = Client::connect(target).await?;
        let challenge = challenge(&mut client, 0).await?;
        Ok((target, client, challenge))
    });
    let (mut parts, mut failures) = (Vec::new(), Vec::new());
    for (target, answer) in targets.iter().zip(join_all(asking).await) {
        match answer {
            Ok((target, client, challenge)) => parts.push(Part { target, client, challenge }),
            Err(failure) => {
                tell(target, &failure, as_json);
                failures.push(failure);
            }
        }
    }
    (parts, failures)
}

async fn challenge(client: &mut Client<'_>, signers: u32) -> Result<Challenge, Failure> {
    match client.ask(Request::Challenge(ChallengeRequest { signers })).await? {
        Answer::Challenge(challenge) => Ok(challenge),
        _ => Err(client.unexpected()),
    }
}

/// Two names of one host would make a text that is none.
fn distinct(parts: &[Part<'_>]) -> Result<(), Failure> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for part in parts {
        if let Some(other) = seen.insert(&part.challenge.host_id, &part.target.name) {
            return Err(Failure::Usage(format!("{other} and {} are the same host; name it once", part.target.name)));
        }
    }
    Ok(())
}

/// Where one host asks for several people, the others' challenges have to last as long.
async fn same_time(parts: &mut [Part<'_>]) -> Result<(), Failure> {
    let most = parts.iter().map(|part| part.challenge.required_signers).max().unwrap_or_default();
    if most < 2 {
        return Ok(());
    }
    let short = parts.iter_mut().filter(|part| part.challenge.required_signers < 2);
    let again = short.map(|part| async move {
        part.challenge = challenge(&mut part.client, most).await?;
        Ok(())
    });
    join_all(again).await.into_iter().collect()
}

/// What all hosts together ask of those who sign.
fn asked(parts: &[Part<'_>]) -> cosign::Asked {
    cosign::Asked {
        signers: parts.iter().map(|part| part.challenge.required_signers).max().unwrap_or_default(),
        seconds: parts.iter().map(|part| part.challenge.valid_seconds).min().unwrap_or_default(),
    }
}

fn text(args: &OpenArgs, operator: String, parts: &[Part<'_>]) -> Result<String, Failure> {
    let shortest = parts.iter().map(|part| part.challenge.default_ttl_seconds).min().unwrap_or_default();
    let reason = args.reason.as_deref().unwrap_or_default().trim().to_owned();
    let ticket = args.ticket.trim().to_owned();
    let ttl_seconds = args.ttl.map_or(shortest, |ttl| ttl.as_secs());
    let (close_on_exit, client_time) = (args.close_on_exit, client_time());
    let text = match parts {
        [only] => Text::One(GrantText {
            claim: claim(operator, &only.challenge)?,
            reason,
            ticket,
            ttl_seconds,
            close_on_exit,
            client_time,
        }),
        several => {
            let places: Result<Vec<Place>, Failure> = several.iter().map(place).collect();
            Text::Many(ManyText { places: places?, operator, reason, ticket, ttl_seconds, close_on_exit, client_time })
        }
    };
    text.encode().map_err(|e| Failure::Usage(format!("this cannot be asked for: {e}")))
}

fn place(part: &Part<'_>) -> Result<Place, Failure> {
    let claim = claim(String::new(), &part.challenge)?;
    Ok(Place { host_id: claim.host_id, host_name: claim.host_name, boot_id: claim.boot_id, nonce: claim.nonce })
}

/// By name of the host.
type AllOpened<'a> = HashMap<String, (&'a Target, Opened)>;

/// Gives every host the request, and says what each answers as it does.
async fn hand_in<'a>(parts: Vec<Part<'a>>, request: &OpenRequest, args: &OpenArgs) -> (AllOpened<'a>, Vec<Failure>) {
    let started = Instant::now();
    let mut answers: FuturesUnordered<_> = parts.into_iter().map(|part| ask(part, request.clone(), started)).collect();
    let (mut opened, mut failures) = (HashMap::new(), Vec::new());
    while let Some((target, challenge, answer, took)) = answers.next().await {
        match answer {
            Ok(one) => {
                announce(&one, target, args.verbose.then_some(took));
                if args.json {
                    tell_json(&opened_json(&one, &challenge, took));
                }
                opened.insert(target.name.clone(), (target, one));
            }
            Err(failure) => {
                tell(target, &failure, args.json);
                failures.push(failure);
            }
        }
    }
    (opened, failures)
}

async fn ask(
    mut part: Part<'_>,
    request: OpenRequest,
    started: Instant,
) -> (&Target, Challenge, Result<Opened, Failure>, Duration) {
    let answer = match part.client.ask(Request::Open(request)).await {
        Ok(Answer::Opened(opened)) => Ok(opened),
        Ok(_) => Err(part.client.unexpected()),
        Err(failure) => Err(failure),
    };
    (part.target, part.challenge, answer, started.elapsed())
}

fn tell(target: &Target, failure: &Failure, as_json: bool) {
    say(&format!("{}: {failure}", plain(&target.name)));
    if as_json {
        let error = json!({ "code": failure.code(), "message": failure.to_string() });
        tell_json(&json!({ "host": target.name, "error": error }));
    }
}
