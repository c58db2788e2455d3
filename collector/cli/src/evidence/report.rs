//! What a verification found, for people and as JSON.

use anyhow::Result;
use breakglass_proof::review::LogHead;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{reviewed, session::Told};
use crate::print::{Printer, Style, bytes, count, counted, pad, safe, time};

/// Columns of the state and of a check's name.
const STATES: usize = 12;
const NAMES: usize = 13;

/// What never follows from an evidence file, whatever is in it.
const LIMITS: [&str; 3] = [
    "Whoever had root on the host before the closing could have signed otherwise for what was recorded after the last change of the \
     key (at most a minute of activity). Where `log` is proved, what was signed first and had reached the collector by then is there.",
    "That the kernel programs saw everything is not in the numbers: see the session's tier.",
    "The operator's own signature is in the record as it was verified by the host; it is not verified again here.",
];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// The file does not say.
    Unproved,
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Byte of the file at which the content of the section begins.
    pub offset: Option<u64>,
    /// Sequence of the frame.
    pub frame: Option<u64>,
}

impl Place {
    /// A byte of the file.
    pub fn byte(offset: u64) -> Self {
        Self { offset: Some(offset), frame: None }
    }

    /// A frame.
    pub fn frame(seq: u64) -> Self {
        Self { offset: None, frame: Some(seq) }
    }
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// A stable word.
    pub name: &'static str,
    /// How it ended.
    pub state: State,
    /// Where it failed first.
    #[serde(flatten)]
    pub place: Place,
    /// A sentence.
    pub detail: String,
    /// Failures of this check beside the first.
    pub more: u64,
}

impl Check {
    /// A check that was not made yet.
    pub fn new(name: &'static str) -> Self {
        let detail = "not looked at, because of what is wrong before it".to_owned();
        Self { name, state: State::Unproved, place: Place::default(), detail, more: 0 }
    }
}

/// What the file is about; as good as the verdict.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// The session's id.
    pub session: String,
    /// The host's id.
    pub host_id: String,
    /// The host's name, as the collector knows it.
    pub hostname: String,
    /// The host key, hexadecimal.
    pub host_key: String,
    /// Changes of the key.
    pub epochs: u64,
    /// First frame.
    pub first_frame: u64,
    /// Last frame.
    pub last_frame: u64,
    /// Its hash, hexadecimal.
    pub last_hash: String,
    /// The stream, hexadecimal.
    pub stream: String,
    /// Bytes of frames.
    pub bytes: u64,
    /// Who opened it.
    pub operator: String,
    /// Fingerprint of the operator's key.
    pub operator_key: String,
    /// Name and fingerprint of the key of everybody who extended it.
    pub joined: Vec<(String, String)>,
    /// Why.
    pub reason: String,
    /// Tier of the recording.
    pub tier: String,
    /// Wall clock of the opening, ns; 0 if it is not there.
    pub opened_ns: i64,
    /// Wall clock of the closing, ns; 0 if it is not there.
    pub closed_ns: i64,
    /// How it was closed.
    pub closed_by: String,
    /// Events in the frames.
    pub events: u64,
    /// Events of the session.
    pub session_events: u64,
    /// Alerts of the session.
    pub alerts: u64,
    /// Kernel records.
    pub records: u64,
    /// Kernel records that are declared missing.
    pub missing: u64,
    /// The transparency log as of the file.
    #[serde(serialize_with = "log_head")]
    pub log: Option<LogHead>,
    /// Reviews that were signed.
    pub reviews: Vec<reviewed::Told>,
}

fn log_head<S: Serializer>(head: &Option<LogHead>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(LogHead { origin, size, root }) = head else { return serializer.serialize_none() };
    let mut log = serializer.serialize_struct("log", 3)?;
    log.serialize_field("origin", origin)?;
    log.serialize_field("size", size)?;
    log.serialize_field("root", &hex::encode(root))?;
    log.end()
}

impl Facts {
    /// Adds what the frames tell.
    pub fn tell(&mut self, told: &Told) {
        if let Some((opened, _, wall_ns)) = &told.opened {
            self.operator = opened.operator.clone();
            self.operator_key = opened.key_fingerprint.clone();
            self.reason = opened.reason.clone();
            self.tier = opened.tier.clone();
            self.opened_ns = *wall_ns;
        }
        self.joined = told.joined.clone();
        if let Some((closed, _, wall_ns)) = &told.closed {
            self.closed_by = closed.cause().as_str_name().trim_start_matches("CLOSE_CAUSE_").to_lowercase();
            self.closed_ns = *wall_ns;
        }
        (self.events, self.session_events, self.alerts) = (told.events, told.own_events, told.alerts);
        (self.records, self.missing) = told.numbers.counts();
    }
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything holds under a host key that the reader trusts.
    Verified,
    /// Something does not hold.
    Broken,
    /// Everything holds, but the reader named no host key.
    Unanchored,
}

/// The whole result.
#[derive(Clone, Debug)]
pub struct Report {
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// What the file is about.
    pub facts: Facts,
}

impl Report {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        let state = |name| self.checks.iter().find(|check| check.name == name).map(|check| check.state);
        if self.checks.iter().any(|check| check.state == State::Failed) {
            Verdict::Broken
        } else if state("host-key") == Some(State::Passed) {
            Verdict::Verified
        } else {
            Verdict::Unanchored
        }
    }
}

#[derive(Serialize)]
struct Json<'a> {
    r#type: &'static str,
    verdict: Verdict,
    checks: &'a [Check],
    session: &'a Facts,
    limits: [&'static str; 3],
}

/// Prints it.
pub fn print(printer: &mut Printer, report: &Report) -> Result<()> {
    if printer.is_json() {
        let verdict = report.verdict();
        let json =
            Json { r#type: "verification", verdict, checks: &report.checks, session: &report.facts, limits: LIMITS };
        return Ok(printer.line(&serde_json::to_string(&json)?)?);
    }
    let (style, verdict) = match report.verdict() {
        Verdict::Verified => (Style::Good, "VERIFIED"),
        Verdict::Broken => (Style::Bad, "BROKEN: do not rely on this file"),
        Verdict::Unanchored => (Style::Warn, "SOUND, BUT WHOSE? The host key was not compared: give --host-key"),
    };
    let verdict = printer.paint(style, verdict);
    printer.line(&verdict)?;
    printer.line("")?;
    facts(printer, &report.facts)?;
    printer.line("")?;
    for check in &report.checks {
        let (style, word) = match check.state {
            State::Passed => (Style::Good, "proved"),
            State::Failed => (Style::Bad, "FAILED"),
            State::Unproved => (Style::Warn, "not proved"),
        };
        let word = printer.paint(style, &pad(word, STATES));
        printer.line(&format!(
            "  {word}{}{}{}",
            pad(check.name, NAMES),
            safe::text(check.detail.as_bytes()),
            place(check)
        ))?;
    }
    printer.line("")?;
    printer.line("What no evidence file proves:")?;
    for limit in LIMITS {
        printer.line(&format!("  - {limit}"))?;
    }
    Ok(())
}

fn place(check: &Check) -> String {
    if check.state != State::Failed {
        return String::new();
    }
    let frame = check.place.frame.map(|frame| format!("frame {frame}"));
    let offset = check.place.offset.map(|offset| format!("byte {offset} of the file"));
    let mut places: Vec<String> = frame.into_iter().chain(offset).collect();
    if check.more > 0 {
        places.push(format!("and {} more", count(check.more)));
    }
    if places.is_empty() { String::new() } else { format!(" [{}]", places.join(", ")) }
}

fn facts(printer: &mut Printer, facts: &Facts) -> Result<()> {
    let text = |s: &str| safe::text(s.as_bytes());
    let at = |printer: &Printer, ns| if ns == 0 { String::new() } else { printer.zone().full(ns) };
    let lasted = match (facts.opened_ns, facts.closed_ns) {
        (0, _) | (_, 0) => String::new(),
        (from, to) => format!(", after {}", time::span(time::between(from, to))),
    };
    let closed = match facts.closed_ns {
        0 => String::new(),
        ns => format!("{}{lasted}, by {}", at(printer, ns), text(&facts.closed_by)),
    };
    let recorded = format!(
        "{}, {} of them of this session, in {} ({})",
        counted(facts.events, "event"),
        count(facts.session_events),
        format_args!("frames {} to {}", facts.first_frame, facts.last_frame),
        bytes(facts.bytes)
    );
    let lines = [
        ("session", text(&facts.session)),
        ("host", format!("{} ({})", text(&facts.hostname), text(&facts.host_id))),
        ("host key", facts.host_key.clone()),
        ("operator", text(&facts.operator)),
        ("key", text(&facts.operator_key)),
        ("extended by", text(&facts.joined.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "))),
        ("reason", text(&facts.reason)),
        ("tier", text(&facts.tier)),
        ("opened", at(printer, facts.opened_ns)),
        ("closed", closed),
        ("recorded", recorded),
    ];
    let reviews = facts.reviews.iter().map(|review| {
        let reviewed::Told { reviewer, verdict, note, client_time, .. } = review;
        ("reviewed", text(&format!("{verdict}, by {reviewer} on {client_time}: {note}")))
    });
    let lines = lines.into_iter().chain(reviews);
    for (name, value) in lines.filter(|(_, value)| !value.is_empty()) {
        let name = printer.paint(Style::Dim, &pad(name, NAMES));
        printer.line(&format!("  {name}{value}"))?;
    }
    Ok(())
}
