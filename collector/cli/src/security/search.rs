//! `breakglass search`.

use std::ops::Range;

use anyhow::Result;
use breakglass_api::v1;
use clap::{Args, ValueEnum};
use unicode_width::UnicodeWidthStr;

use super::{Desk, NOTHING_FOUND, client::Error, exact};
use crate::{
    config::Config,
    print::{
        Options, Printer, Style, count, note, pad, safe, short_id, shorten,
        time::{self, Zone},
    },
};

/// Columns in front of a hit's text.
const INDENT: usize = 29;

/// Columns of text to leave in front of a match that lies far to the right.
const CONTEXT: usize = 20;

/// Least columns to show of a hit, however narrow the terminal.
const TEXT_MIN: usize = 30;

/// Arguments of `search`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Letters match in either case. Typed corrections are undone first: what counts is what the screen showed.

Examples:
  breakglass search 'drop table'
  breakglass search /etc/shadow --kind command --since 7d
  breakglass search passwd --host web1 --since 2026-11-01 --until '2026-11-02 06:00' --json")]
pub struct SearchArgs {
    /// The text to find, three characters or more.
    text: String,
    /// Only on this host, by name or id.
    #[arg(long)]
    host: Option<String>,
    /// Only in this session.
    #[arg(long)]
    session: Option<String>,
    /// Only in sessions that this operator opened.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Only from this time on: 2026-11-22, "2026-11-22 09:47", RFC 3339, or 2h for two hours ago.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only up to this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only in these; more than one may be given. Without: in all.
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<Place>,
    /// How many hits at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    limit: u32,
}

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// Command lines.
    Command,
    /// Typed lines.
    Typed,
    /// What the screen showed.
    Screen,
    /// Paths of files that were changed.
    File,
    /// Addresses that were connected to or bound.
    Net,
    /// Command lines of programs outside the session, while it was open.
    Witness,
}

impl From<Place> for v1::SearchKind {
    fn from(place: Place) -> Self {
        match place {
            Place::Command => Self::Command,
            Place::Typed => Self::Typed,
            Place::Screen => Self::Screen,
            Place::File => Self::File,
            Place::Net => Self::Net,
            Place::Witness => Self::Witness,
        }
    }
}

/// Searches.
pub async fn run(args: &SearchArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let session = match &args.session {
        Some(name) => exact(name, &desk.session(name).await?),
        None => String::new(),
    };
    let request = request(args, session, desk.printer.zone())?;
    let answer = desk.client.query.search(request).await;
    let answer = answer.map_err(|status| desk.client.explain(&status))?.into_inner();
    let printer = &mut desk.printer;
    if printer.is_json() {
        answer.hits.iter().try_for_each(|hit| printer.json(hit))?;
    } else {
        for (position, group) in grouped(&answer.hits).iter().enumerate() {
            if position > 0 {
                printer.line("")?;
            }
            print_group(printer, group, &args.text)?;
        }
    }
    printer.flush()?;
    if answer.more {
        note(&format!("More matched than the {} shown: narrow the search, or raise --limit.", answer.hits.len()));
    }
    if answer.behind {
        note("The collector is behind: what came in last cannot be found yet. Ask again in a moment.");
    }
    if answer.hits.is_empty() {
        note(&format!("Nothing found for {:?}.", safe::text(args.text.as_bytes())));
        return Ok(NOTHING_FOUND);
    }
    Ok(0)
}

fn request(args: &SearchArgs, session: String, zone: &Zone) -> Result<v1::SearchRequest, Error> {
    let now = time::now_ns();
    let read = |text: &String| zone.parse(text, now).map_err(|error| Error::Usage(format!("{error:#}")));
    let bound = |text: &Option<String>| text.as_ref().map_or(Ok(0), read);
    Ok(v1::SearchRequest {
        text: args.text.clone(),
        host: args.host.clone().unwrap_or_default(),
        session,
        operator: args.operator.clone().unwrap_or_default(),
        since_ns: bound(&args.since)?,
        until_ns: bound(&args.until)?,
        limit: args.limit,
        kinds: args.kind.iter().map(|place| v1::SearchKind::from(*place).into()).collect(),
    })
}

/// Hits by session, sessions in the order of their first hit.
fn grouped(hits: &[v1::SearchHit]) -> Vec<Vec<&v1::SearchHit>> {
    let mut place = std::collections::HashMap::new();
    let mut groups: Vec<Vec<&v1::SearchHit>> = Vec::new();
    for hit in hits {
        let at = *place.entry(hit.session.as_str()).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.push(hit),
            None => groups.push(vec![hit]),
        }
    }
    groups
}

fn print_group(printer: &mut Printer, hits: &[&v1::SearchHit], text: &str) -> Result<()> {
    let Some(first) = hits.first() else { return Ok(()) };
    let title = format!(
        "{}  {}  {}  {}",
        printer.paint(Style::Bold, &short_id(&first.session)),
        safe::text(first.hostname.as_bytes()),
        safe::text(first.operator.as_bytes()),
        printer.paint(Style::Dim, &printer.zone().full(first.wall_ns)),
    );
    printer.line(&title)?;
    for hit in hits {
        let place = match hit.kind() {
            v1::SearchKind::Command => format!("command {}", hit.command_number),
            v1::SearchKind::Typed => "typed".to_owned(),
            v1::SearchKind::Screen if hit.times > 1 => format!("screen ×{}", count(hit.times.into())),
            v1::SearchKind::Screen => "screen".to_owned(),
            v1::SearchKind::File => "file".to_owned(),
            v1::SearchKind::Net => "net".to_owned(),
            v1::SearchKind::Witness => "outside".to_owned(),
            v1::SearchKind::Unspecified => "other".to_owned(),
        };
        let front = format!("  {}  {}  ", printer.zone().clock(hit.wall_ns), pad(&place, 15));
        let line = format!("{}{}", printer.paint(Style::Dim, &front), excerpt(printer, &hit.text, text));
        printer.line(&line)?;
    }
    Ok(())
}

/// A hit's text with the match marked; on a terminal, as much of it as fits on the line.
fn excerpt(printer: &Printer, hit: &str, wanted: &str) -> String {
    let text = safe::text(hit.as_bytes());
    let wanted = safe::text(wanted.as_bytes());
    let room = printer.width().map(|width| width.saturating_sub(INDENT).max(TEXT_MIN));
    let shown = match room {
        Some(room) => around(&text, &wanted, room),
        None => text,
    };
    match find(&shown, &wanted) {
        Some(at) => {
            let part = |range: Range<usize>| shown.get(range).unwrap_or_default();
            let marked = printer.paint(Style::Match, part(at.clone()));
            format!("{}{marked}{}", part(0..at.start), part(at.end..shown.len()))
        }
        None => shown,
    }
}

/// Cuts text to a width so that the match is in it.
fn around(text: &str, wanted: &str, width: usize) -> String {
    let Some(at) = find(text, wanted).filter(|_| text.width() > width) else { return shorten(text, width) };
    let (before, rest) = text.split_at_checked(at.start).unwrap_or((text, ""));
    if before.width() + wanted.width() < width {
        return shorten(text, width);
    }
    let start = before.char_indices().rev().nth(CONTEXT.min(width / 3)).map_or(0, |(i, _)| i);
    shorten(&format!("…{}{rest}", before.get(start..).unwrap_or_default()), width)
}

/// Where text contains what was searched for, letters in either case.
fn find(text: &str, wanted: &str) -> Option<Range<usize>> {
    let wanted: Vec<char> = wanted.chars().flat_map(char::to_lowercase).collect();
    if wanted.is_empty() {
        return None;
    }
    text.char_indices().find_map(|(start, _)| Some(start..start + matched(text.get(start..)?, &wanted)?))
}

/// How many bytes of the text's beginning match.
fn matched(text: &str, wanted: &[char]) -> Option<usize> {
    let mut wanted = wanted.iter();
    for (at, c) in text.char_indices() {
        if wanted.as_slice().is_empty() {
            return Some(at);
        }
        if !c.to_lowercase().all(|c| wanted.next() == Some(&c)) {
            return None;
        }
    }
    wanted.as_slice().is_empty().then_some(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_in_either_case() {
        assert_eq!(find("psql -c 'DROP Table x'", "drop table"), Some(9..19));
        assert_eq!(find("GRÖSSE", "größe"), None);
        assert_eq!(find("GRÖẞE", "größe"), Some(0..8));
        assert_eq!(find("abc", "abcd"), None);
        assert_eq!(find("abc", ""), None);
    }

    #[test]
    fn the_match_stays_on_the_line() {
        let text = format!("{}needle{}", "x".repeat(200), "y".repeat(200));
        let shown = around(&text, "needle", 40);
        assert!(shown.contains("xneedley") && shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert!(shown.width() <= 40);
        assert_eq!(around("short needle", "needle", 40), "short needle");
    }

    proptest! {
        #[test]
        fn cutting_never_fails(text in "\\PC{0,80}", wanted in "\\PC{0,5}", width in 4..60usize) {
            prop_assert!(around(&text, &wanted, width).width() <= width);
            if let Some(at) = find(&text, &wanted) {
                prop_assert!(text.get(at).is_some());
            }
        }
    }
}
