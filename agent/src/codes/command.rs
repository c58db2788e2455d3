//! `breakglass-agent codes`.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use super::{Book, CodeError, FEW, book::Tally, paper};
use crate::{config::Config, identity};

/// Makes codes and prints them.
pub fn issue(path: &Path, count: usize, keep: bool) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    if config.grant.required_signers > 1 {
        bail!(
            "this host opens for {} people together (grant.required_signers), and takes no codes: a code is nobody's consent",
            config.grant.required_signers
        );
    }
    let host_id = identity::host_id(&config.host.enrolment, &config.host.state).context("this host has no id")?;
    let host_name = if config.host.name.is_empty() { identity::hostname() } else { config.host.name.clone() };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let book = Book::new(&config.host.state);
    let codes =
        book.issue(count, keep, &now).with_context(|| format!("no codes were made in {}", book.path().display()))?;
    let sheet = paper::sheet(&host_name, &host_id, &config.account.name, &now, &codes);
    let mut out = std::io::stdout();
    out.write_all(sheet.as_bytes())
        .and_then(|()| out.flush())
        .context("the codes are made and could not be printed; nobody has them, so issue anew")?;
    if out.is_terminal() {
        eprintln!("\nThis is shown once. Copy or print it, seal it, and clear the screen and its history.");
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how many codes there are.
pub fn status(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let book = Book::new(&config.host.state);
    let (tally, unused) = match (book.tally(), book.unused()) {
        (Err(CodeError::None), _) => (Tally { issued: 0, left: 0 }, Vec::new()),
        (tally, unused) => (tally?, unused?),
    };
    if json {
        let unused: Vec<_> =
            unused.iter().map(|(serial, issued)| serde_json::json!({ "serial": serial, "issued": issued })).collect();
        let value = serde_json::json!({
            "issued": tally.issued, "used": tally.issued - tally.left, "left": tally.left, "unused": unused,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!("{} of {} one-time codes are left", tally.left, tally.issued);
        for (serial, issued) in &unused {
            println!("  serial {serial}, issued {issued}");
        }
        if tally.left <= FEW {
            println!("Issue new ones: breakglass-agent codes issue");
        }
    }
    Ok(ExitCode::SUCCESS)
}
