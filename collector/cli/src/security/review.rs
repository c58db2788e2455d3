//! `breakglass review`: verifies a session's evidence, and signs it off.

use std::{
    io::{BufReader, Seek},
    path::PathBuf,
    time::SystemTime,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use breakglass_api::v1;
use breakglass_proof::{
    REVIEW_NAMESPACE,
    review::{Review, Verdict},
};
use clap::{Args, ValueEnum};
use tempfile::NamedTempFile;
use uuid::Uuid;
use x509_parser::{extensions::GeneralName, pem::Pem};

use super::{Desk, exact, export};
use crate::{
    config::Config,
    evidence::{
        report::{Facts, Report, State},
        trust::{Trust, host_key},
        verify::Verifier,
    },
    operator::sign,
    print::{Options, Printer, Style, note, safe, short_id},
};

/// Arguments of `review`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Fetches the evidence, verifies it, and signs up to which frame it was seen, in which state of the transparency log, with your SSH key
(ssh-keygen, namespace breakglass-review@v1). Evidence that does not hold can only be signed with a concern. The collector takes the
review if your key is listed in its file `reviewers` under the name in your certificate, and the session was somebody else's.

Replay the session first: breakglass show, breakglass replay.

Examples:
  breakglass review 5f2c9a1e --verdict ok --note 'restarted the database, as agreed in INC-4711'
  breakglass review 5f2c9a1e --verdict concern --note 'why was /etc/shadow copied?' --host-key host-key.pub")]
pub struct ReviewArgs {
    /// The session: its id, or an unambiguous end or beginning of it; HOST/ID where several hosts have it.
    session: String,
    /// What you say of it.
    #[arg(long, value_enum)]
    verdict: Said,
    /// And in words, of one line.
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// The SSH key to sign with; by default that of [operator] in the configuration, or the first usual one.
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The host's key, to hold the evidence against: 64 hexadecimal digits or a file that holds them.
    #[arg(long, value_name = "KEY")]
    host_key: Option<String>,
}

/// A verdict on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Said {
    /// Nothing to object to.
    Ok,
    /// Something has to be looked into.
    Concern,
}

/// Signs a session off.
pub async fn run(args: &ReviewArgs, config: &Config, options: &Options) -> Result<u8> {
    let reviewer = reviewer(config)?;
    let identity = sign::identity(args.identity.as_deref(), config)?;
    let trusted = args.host_key.as_deref().map(host_key).transpose()?;
    let mut desk = Desk::open(config, options).await?;
    let session = desk.session(&args.session).await?;
    ensure!(
        session.closed_ns != 0,
        "session {} is still open: it can be reviewed once it is closed",
        short_id(&session.id)
    );
    if !session.compared {
        note("What the session left behind is not recorded yet. Once it is, the session waits for another review.");
    }
    let report = verified(
        &mut desk,
        &exact(&args.session, &session),
        Trust { hosts: trusted.into_iter().collect(), ..Trust::default() },
    )
    .await?;
    let broken: Vec<_> = report.checks.iter().filter(|check| check.state == State::Failed).collect();
    if let (Some(check), Said::Ok) = (broken.first(), args.verdict) {
        bail!(
            "the evidence does not hold: {} ({}); export and verify it, or sign with --verdict concern",
            safe::text(check.detail.as_bytes()),
            check.name
        );
    }
    let review = review(&report.facts, reviewer, args)?;
    let text = review.encode()?;
    if sign::needs_touch(&identity) {
        note("Touch your security key to sign …");
    }
    let signature = sign::sign("ssh-keygen".as_ref(), &identity, REVIEW_NAMESPACE, &text).await?;
    let request = v1::SubmitReviewRequest { text: text.into_bytes(), signature };
    let answer = desk.client.query.submit_review(request).await;
    let taken = answer.map_err(|status| desk.client.explain(&status))?.into_inner();
    tell(&mut desk.printer, &session, &taken)?;
    Ok(0)
}

/// Fetches the evidence into a file that is gone afterwards, and verifies it.
async fn verified(desk: &mut Desk, session: &str, trust: Trust) -> Result<Report> {
    let mut file = NamedTempFile::new().context("cannot make a temporary file")?;
    let path = file.path().to_owned();
    export::fetch(&mut desk.client, session, 0, &path, file.as_file_mut()).await?;
    file.as_file_mut().rewind().context("cannot read a temporary file")?;
    Verifier::new(trust).run(BufReader::new(file.as_file()))
}

/// What is to be signed: what the verifier saw, not what the collector says.
fn review(facts: &Facts, reviewer: String, args: &ReviewArgs) -> Result<Review> {
    let uuid = |text: &str| Uuid::try_parse(text).map(Uuid::into_bytes);
    let digits = |text: &str| hex::decode(text).ok().filter(|bytes| !bytes.is_empty());
    let unusable = || anyhow!("the evidence has no last frame that could be signed for; export and verify it");
    Ok(Review {
        session: uuid(&facts.session).map_err(|_| unusable())?,
        host_id: uuid(&facts.host_id).map_err(|_| unusable())?,
        stream: digits(&facts.stream).and_then(|bytes| bytes.try_into().ok()).ok_or_else(unusable)?,
        last_frame: facts.last_frame,
        last_hash: digits(&facts.last_hash).and_then(|bytes| bytes.try_into().ok()).ok_or_else(unusable)?,
        log: facts.log.clone(),
        reviewer,
        verdict: match args.verdict {
            Said::Ok => Verdict::Ok,
            Said::Concern => Verdict::Concern,
        },
        note: args.note.clone(),
        client_time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    })
}

/// The name in the person's certificate, which is what the collector knows them by.
fn reviewer(config: &Config) -> Result<String> {
    let collector = config.collector.as_ref().ok_or(super::client::Error::NotConfigured)?;
    let shown = collector.cert.display();
    let pem = std::fs::read(&collector.cert).with_context(|| format!("cannot read {shown}"))?;
    name_in(&pem).with_context(|| format!("{shown} names nobody: it is not a certificate of breakglass-collector"))
}

fn name_in(pem: &[u8]) -> Option<String> {
    let pem = Pem::iter_from_buffer(pem).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(uri.strip_prefix("breakglass://")?.split_once('/')?.1.to_owned()),
        _ => None,
    })
}

fn tell(printer: &mut Printer, session: &v1::Session, taken: &v1::Review) -> Result<()> {
    if printer.is_json() {
        printer.json(taken)?;
    } else {
        let (style, word) = match taken.verdict.as_str() {
            "ok" => (Style::Good, "ok"),
            _ => (Style::Bad, "concern"),
        };
        let word = printer.paint(style, word);
        let (name, key) = (safe::text(taken.reviewer.as_bytes()), safe::text(taken.key.as_bytes()));
        printer.line(&format!("{}: {word}, signed by {name} ({key})", short_id(&session.id)))?;
    }
    Ok(printer.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_names_nobody() {
        for pem in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(name_in(pem.as_bytes()), None);
        }
    }
}
