//! The body of `show`: commands and notices, a line each.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use breakglass_api::v1::{self, ExecFault, event::Body, witness_link::Kind as LinkKind};
use unicode_width::UnicodeWidthStr;

use super::{ShowArgs, actions, header};
use crate::print::{Printer, Style, bytes, counted, errno, pad, quote, safe, shorten, signal, time};

/// Columns of each field in front of the command line.
const NUMBER: usize = 5;
const CLOCK: usize = 8;
const USER: usize = 10;
const RESULT: usize = 8;
const TOOK: usize = 6;

/// Columns in front of the command line: the fields and two spaces after each.
const INDENT: usize = NUMBER + CLOCK + USER + RESULT + TOOK + 5 * 2;

/// Lines of a terminal that a command line may take before it is shortened.
const LINES_MAX: usize = 4;

/// Commands that are remembered as running while a session is followed, to tell of their end. Only a session that starts this
/// many without any ending goes past it, and then some ends are not told.
const RUNNING_MAX: usize = 100_000;

/// Kinds of events that belong among the commands. A kind more needs its words in [`describe`].
pub(super) const NOTICES: [&str; 9] = [
    "alert",
    "gap",
    "session_resumed",
    "session_extended",
    "login",
    "clock_step",
    "proof_refused",
    "agent_stop_asked",
    "session_closed",
];

/// Whether an event tells of a program that others started while the session was open.
pub(super) fn is_witness(event: &v1::Event) -> bool {
    let ring = event.origin.as_ref().map(v1::KernelRef::ring);
    ring == Some(v1::Ring::Witness) && matches!(event.body, Some(Body::Exec(_)))
}

/// Prints commands and notices in the order in which it is given them.
pub(super) struct Timeline {
    account: (u32, String),
    all: bool,
    full: bool,
    follow: bool,
    open: bool,
    date: String,
    /// When what was printed last happened.
    latest_ns: i64,
    directory: Option<Vec<u8>>,
    titled: bool,
    hidden: u64,
    running: HashSet<u64>,
}

/// The fields in front of a command line.
struct Fields<'a> {
    number: &'a str,
    wall_ns: i64,
    uid: Option<u32>,
    /// Painted and padded, or short and plain.
    result: &'a str,
    took: &'a str,
}

impl Timeline {
    pub(super) fn new(args: &ShowArgs, session: &v1::Session, follow: bool) -> Self {
        let opened = session.opened.clone().unwrap_or_default();
        Self {
            account: (opened.uid, safe::text(opened.account.as_bytes())),
            all: args.all,
            full: args.full,
            follow,
            open: session.closed_ns == 0,
            date: String::new(),
            latest_ns: 0,
            directory: None,
            titled: false,
            hidden: 0,
            running: HashSet::new(),
        }
    }

    /// Prints a command; while following also its end, when it comes up again with one.
    pub(super) fn command(&mut self, printer: &mut Printer, command: &v1::Command) -> Result<()> {
        if command.failed.is_some() && !self.all {
            self.hidden += 1;
            return Ok(());
        }
        if printer.is_json() {
            return printer.json(command);
        }
        if self.running.remove(&command.number) {
            return self.ended(printer, command);
        }
        let over = command.exit.is_some() || command.failed.is_some() || command.replaced_by != 0;
        if self.follow && !over && self.running.len() < RUNNING_MAX {
            self.running.insert(command.number);
        }
        self.title(printer, command.wall_ns)?;
        match (&command.exec, &command.failed) {
            (_, Some(failed)) => self.failed(printer, command, failed),
            (Some(exec), None) => self.started(printer, command, exec),
            (None, None) => self.command_row(printer, command, "-", "", "(nothing is known of this one)"),
        }
    }

    /// Prints an alert, a gap or the like, or a program outside the session; nothing for any other event.
    pub(super) fn notice(&mut self, printer: &mut Printer, event: &v1::RecordedEvent) -> Result<()> {
        let Some(recorded) = &event.event else { return Ok(()) };
        let body = recorded.body.as_ref();
        let action = body.filter(|_| self.all).and_then(actions::describe);
        let described = action.or_else(|| describe(printer, body?));
        let witness = is_witness(recorded);
        if printer.is_json() {
            return if witness || described.is_some() { printer.json(event) } else { Ok(()) };
        }
        if let (true, Some(Body::Exec(exec))) = (witness, &recorded.body) {
            return self.witnessed(printer, event.wall_ns, exec);
        }
        let Some((style, text)) = described else { return Ok(()) };
        self.title(printer, event.wall_ns)?;
        let clock = printer.zone().clock(event.wall_ns);
        let mark = printer.paint(style, if style == Style::Bad { "!" } else { "-" });
        let text = printer.paint(style, &text);
        let front = format!("{}{mark}  {clock}  ", " ".repeat(NUMBER - 1));
        Ok(printer.folded(&front, NUMBER + CLOCK + 4, &text)?)
    }

    /// Prints a program outside the session.
    fn witnessed(&mut self, printer: &mut Printer, wall_ns: i64, exec: &v1::Exec) -> Result<()> {
        self.title(printer, wall_ns)?;
        let mut line = self.command_line(printer, exec);
        if let Some(link) = &exec.link {
            line = format!("{line}  {}", printer.paint(Style::Warn, &linked(link)));
        }
        let uid = exec.credentials.as_ref().map(|credentials| credentials.euid);
        let result = printer.paint(Style::Dim, &pad("outside", RESULT));
        self.row(printer, &Fields { number: "~", wall_ns, uid, result: &result, took: "" }, &line)
    }

    /// Says what was left out.
    pub(super) fn end(&mut self, printer: &mut Printer) -> Result<()> {
        if printer.is_json() || self.hidden == 0 {
            return Ok(());
        }
        let hidden = format!("{} not shown; --all shows them.", counted(self.hidden, "failed exec"));
        let hidden = printer.paint(Style::Dim, &hidden);
        printer.line("")?;
        Ok(printer.line(&hidden)?)
    }

    /// The headings before the first line, and the date wherever it changes.
    fn title(&mut self, printer: &mut Printer, wall_ns: i64) -> Result<()> {
        if !self.titled {
            self.titled = true;
            let (number, clock, user) = (format!("{:>NUMBER$}", "#"), pad("TIME", CLOCK), pad("USER", USER));
            let (result, took) = (pad("RESULT", RESULT), format!("{:>TOOK$}", "TOOK"));
            let titles = format!("{number}  {clock}  {user}  {result}  {took}  COMMAND");
            printer.line("")?;
            printer.line(&printer.paint(Style::Dim, &titles))?;
            self.date = printer.zone().date(wall_ns);
        }
        self.latest_ns = wall_ns;
        let date = printer.zone().date(wall_ns);
        if date != self.date {
            let line = format!("{}  {date}", " ".repeat(NUMBER));
            printer.line(&printer.paint(Style::Dim, &line))?;
            self.date = date;
        }
        Ok(())
    }

    fn started(&mut self, printer: &mut Printer, command: &v1::Command, exec: &v1::Exec) -> Result<()> {
        if self.directory.as_ref() != Some(&exec.cwd) {
            let place = format!("in {}", safe::text(&exec.cwd));
            // Above the command lines; further left where it would not fit there.
            let room = printer.width().map_or(INDENT, |width| width.saturating_sub(place.width()));
            let line = format!("{}{place}", " ".repeat(INDENT.min(room)));
            printer.line(&printer.paint(Style::Dim, &line))?;
            self.directory = Some(exec.cwd.clone());
        }
        let (result, took) = self.result(printer, command);
        let line = self.command_line(printer, exec);
        self.command_row(printer, command, &result, &took, &line)
    }

    fn failed(&self, printer: &mut Printer, command: &v1::Command, failed: &v1::ExecFailed) -> Result<()> {
        let times = if failed.count > 1 { format!(" ({} times)", failed.count) } else { String::new() };
        let line = format!("{}: {}{times}", quote::line(&[&failed.filename]), errno(failed.errno));
        let line = printer.paint(Style::Dim, &line);
        let result = printer.paint(Style::Warn, &pad("not run", RESULT));
        self.command_row(printer, command, &result, "", &line)
    }

    /// While following: a line for the end of a command that was printed as it started, or for what its process became.
    fn ended(&mut self, printer: &mut Printer, command: &v1::Command) -> Result<()> {
        let (result, took) = self.result(printer, command);
        let name = command.exec.as_ref().and_then(|exec| exec.argv.first()).map(|name| safe::text(name));
        let what = if command.exit.is_some() { "ended" } else { "became another" };
        let name = printer.paint(Style::Dim, &format!("{what}: {}", shorten(&name.unwrap_or_default(), 40)));
        // When a process became another is told by the other one's start, which was printed just before.
        let wall_ns = if command.exit.is_some() { command.exit_wall_ns } else { self.latest_ns };
        self.title(printer, wall_ns)?;
        let at = v1::Command { wall_ns, ..command.clone() };
        self.command_row(printer, &at, &result, &took, &name)
    }

    fn command_row(
        &self,
        printer: &mut Printer,
        command: &v1::Command,
        result: &str,
        took: &str,
        line: &str,
    ) -> Result<()> {
        let uid = match (&command.exec, &command.failed) {
            (Some(exec), _) => exec.credentials.as_ref().map(|credentials| credentials.euid),
            (None, Some(failed)) => Some(failed.uid),
            (None, None) => None,
        };
        let number = command.number.to_string();
        self.row(printer, &Fields { number: &number, wall_ns: command.wall_ns, uid, result, took }, line)
    }

    fn row(&self, printer: &mut Printer, fields: &Fields<'_>, line: &str) -> Result<()> {
        let Fields { number, wall_ns, uid, result, took } = *fields;
        let number = printer.paint(Style::Dim, &format!("{number:>NUMBER$}"));
        let clock = printer.zone().clock(wall_ns);
        let user = pad(&self.user(uid), USER);
        let user = if uid == Some(0) { printer.paint(Style::Warn, &user) } else { user };
        Ok(printer.line(&format!("{number}  {clock}  {user}  {}  {took:>TOOK$}  {line}", pad(result, RESULT)))?)
    }

    /// A user's name where it is known: the host's other names are not in the record.
    fn user(&self, uid: Option<u32>) -> String {
        match uid {
            None => "?".to_owned(),
            Some(0) => "root".to_owned(),
            Some(uid) if uid == self.account.0 && !self.account.1.is_empty() => shorten(&self.account.1, USER),
            Some(uid) => format!("uid {uid}"),
        }
    }

    /// How a command ended, padded and painted, and how long it took.
    fn result(&self, printer: &Printer, command: &v1::Command) -> (String, String) {
        let Some(exit) = &command.exit else {
            if command.replaced_by != 0 {
                let text = pad(&format!("→ {}", command.replaced_by), RESULT);
                return (printer.paint(Style::Dim, &text), String::new());
            }
            let text = if self.open { printer.paint(Style::Warn, &pad("runs", RESULT)) } else { pad("?", RESULT) };
            return (text, String::new());
        };
        let (style, text) = match (exit.signal, exit.status) {
            (0, 0) => (Style::Dim, "ok".to_owned()),
            (0, status) => (Style::Bad, format!("exit {status}")),
            (number, _) => (Style::Bad, signal(number)),
        };
        let took = time::span(time::between(command.wall_ns, command.exit_wall_ns));
        (printer.paint(style, &pad(&text, RESULT)), took)
    }

    fn command_line(&self, printer: &Printer, exec: &v1::Exec) -> String {
        let line = if exec.argv.is_empty() { "(no arguments)".to_owned() } else { quote::line(&exec.argv) };
        let line = self.fitted(printer, line);
        let mut notes = Vec::new();
        if renamed(exec) {
            notes.push(format!("[{}]", safe::text(&exec.exe)));
        }
        if exec.file.as_ref().is_some_and(|file| file.anonymous) {
            notes.push("[from memory or a deleted file]".to_owned());
        }
        if exec.faults & !(ExecFault::PathPartial as u32) != 0 {
            notes.push(format!("[not all could be read: {}]", faults(exec.faults)));
        }
        match notes.is_empty() {
            true => line,
            false => format!("{line}  {}", printer.paint(Style::Warn, &notes.join(" "))),
        }
    }

    /// Shortens what would fill a terminal; the whole is a --full away.
    fn fitted(&self, printer: &Printer, line: String) -> String {
        let Some(width) = printer.width().filter(|_| !self.full) else { return line };
        let room = (width * LINES_MAX).saturating_sub(INDENT).max(width);
        if line.len() <= room || line.width() <= room {
            return line;
        }
        let whole = format!(" ({}; --full shows all)", bytes(line.len() as u64));
        let head = shorten(&line, room.saturating_sub(whole.len()));
        format!("{head}{}", printer.paint(Style::Dim, &whole))
    }
}

/// What a program outside the session has to do with it, in words.
fn linked(link: &v1::WitnessLink) -> String {
    let what = match link.kind() {
        LinkKind::Unspecified => "linked to this session",
        LinkKind::Manager => "service manager",
        LinkKind::Unit => "unit of this session",
        LinkKind::Job => "job of cron or at",
        LinkKind::Container => "container",
        LinkKind::Multiplexer => "another's terminal multiplexer",
        LinkKind::LocalLogin => "login to this host",
        LinkKind::Service => "service",
    };
    let certainty = if link.proven { "" } else { "perhaps " };
    let by = link.by.map(|by| format!(", asked by process {}", by.pid)).unwrap_or_default();
    let followed = if link.tagged { ", followed" } else { "" };
    let span = time::span(Duration::from_nanos(link.after_ns));
    format!("[{certainty}{what}{by} {span} before through {}{followed}]", safe::text(&link.through))
}

/// Whether a program ran under a name that is not its own: neither that of its file, nor that of a link to it, nor that of the
/// script that it interprets.
fn renamed(exec: &v1::Exec) -> bool {
    let base = |path: &[u8]| path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
    let Some(name) = exec.argv.first() else { return true };
    // A login shell's name begins with a dash.
    let name = base(name.strip_prefix(b"-").unwrap_or(name));
    let own = [&exec.exe, &exec.filename, &exec.interpreter];
    !own.into_iter().filter(|path| !path.is_empty()).any(|path| base(path) == name)
}

fn faults(bits: u32) -> String {
    let names = [
        (ExecFault::Argv, "arguments"),
        (ExecFault::Env, "environment"),
        (ExecFault::Exe, "path"),
        (ExecFault::Cwd, "directory"),
        (ExecFault::Filename, "name"),
        (ExecFault::Credentials, "credentials"),
        (ExecFault::Parent, "parent"),
        (ExecFault::LostRecord, "lost record"),
        (ExecFault::ArgvCut, "end of arguments"),
        (ExecFault::EnvCut, "end of environment"),
    ];
    let set = names.iter().filter(|(fault, _)| bits & (*fault as u32) != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// A notice in words, harmless.
fn describe(printer: &Printer, body: &Body) -> Option<(Style, String)> {
    let text = |s: &str| safe::text(s.as_bytes());
    Some(match body {
        Body::Alert(alert) => (Style::Bad, format!("{}: {}", text(&alert.code), text(&alert.message))),
        Body::Gap(gap) => (Style::Bad, describe_gap(gap)),
        Body::SessionResumed(resumed) => {
            let live = counted(resumed.live_processes.into(), "live process");
            (Style::Warn, format!("the agent was restarted; the account is locked, {live} followed on"))
        }
        Body::SessionExtended(extended) => {
            let again = if extended.reenabled { "the account is enabled again" } else { "extended" };
            (Style::Warn, format!("{again} by {}: {}", text(&extended.operator), text(&extended.reason)))
        }
        Body::CollectorOrder(order) => {
            let what = text(&order.what);
            (
                Style::Warn,
                format!("{what} asked for by {} by way of the collector: {}", text(&order.by), text(&order.reason)),
            )
        }
        Body::Login(login) => (Style::Dim, describe_login(login)),
        Body::ClockStep(step) => {
            let by = time::span(std::time::Duration::from_nanos(step.nanoseconds.unsigned_abs()));
            let way = if step.nanoseconds < 0 { "back" } else { "forward" };
            (Style::Warn, format!("the host's clock was set {way} by {by}"))
        }
        Body::ProofRefused(refused) => {
            (Style::Warn, format!("refused: {}: {}", text(&refused.code), text(&refused.message)))
        }
        Body::AgentStopAsked(asked) => {
            (Style::Warn, format!("root had the agent stopped ({}): {}", text(&asked.by), text(&asked.reason)))
        }
        Body::SessionClosed(closed) => (Style::Dim, format!("closed {}", header::ending(printer, closed))),
        _ => return None,
    })
}

/// A login in words, harmless.
fn describe_login(login: &v1::Login) -> String {
    let mut line = format!("login by {}", safe::text(login.service.as_bytes()));
    let parts = [
        (" as ", &login.operator),
        (" at ", &login.tty),
        (" from ", &login.remote_host),
        (" with ", &login.key_fingerprint),
    ];
    for (word, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
        line.push_str(word);
        line.push_str(&safe::text(value.as_bytes()));
    }
    line
}

/// A gap in words, harmless.
pub(in crate::security) fn describe_gap(gap: &v1::Gap) -> String {
    let what = match gap.ring() {
        v1::Ring::Audit => "audit record",
        v1::Ring::Witness => "witness record",
        v1::Ring::Bulk => "terminal record",
    };
    let mut line = format!("gap: {} missing", counted(gap.records, what));
    if gap.bytes > 0 {
        line.push_str(&format!(", {} of terminal", bytes(gap.bytes)));
    }
    if !gap.cause.is_empty() {
        line.push_str(&format!(" ({})", safe::text(gap.cause.as_bytes())));
    }
    line
}
