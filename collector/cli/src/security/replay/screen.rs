//! Plays a replay on a terminal.

use std::time::Duration;

use anyhow::Result;
use breakglass_api::v1::{self, replay_item::Body};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{
    ReplayArgs, Source,
    filter::Filter,
    keys::{Key, Keyboard},
    markers::Markers,
    pace::Pace,
};
use crate::print::{self, Printer, Style};

/// How long to leave the note about the window's size before the replay begins to draw over it.
const NOTE_STAYS: Duration = Duration::from_secs(2);

/// Gives a terminal back: soft reset, wrapping, visible cursor, no reverse video, no attributes, ordinary character set.
const RESET: &[u8] = b"\x1b[!p\x1b[?7h\x1b[?25h\x1b[?5l\x1b[0m\x1b(B\x0f";

/// What ends a replay from outside.
enum Stop {
    Key,
    Signal(i32),
}

/// Plays until the end, a key or a signal. Returns the exit code.
pub(super) async fn play(
    args: &ReplayArgs,
    source: &mut Source<'_>,
    printer: &mut Printer,
    follow: bool,
) -> Result<u8> {
    let mut player = Player {
        pace: (!follow).then(|| Pace::new(args.speed, args.max_idle)),
        controls: Controls::open()?,
        filter: Filter::default(),
        markers: Markers::new("\r\n"),
        sized: false,
    };
    let played = player.run(source, printer).await;
    let given_back = player.give_back(printer);
    // The keyboard goes back before anything more is said.
    drop(player);
    let stop = played?;
    given_back?;
    match stop {
        None => {
            let line = printer.paint(Style::Dim, "— end of the recording —");
            printer.line(&line)?;
            Ok(0)
        }
        Some(Stop::Key) => Ok(0),
        Some(Stop::Signal(number)) => Ok(u8::try_from(128 + number).unwrap_or(u8::MAX)),
    }
}

struct Player {
    /// None: as fast as it comes.
    pace: Option<Pace>,
    controls: Controls,
    filter: Filter,
    markers: Markers,
    sized: bool,
}

impl Player {
    async fn run(&mut self, source: &mut Source<'_>, printer: &mut Printer) -> Result<Option<Stop>> {
        loop {
            let item = tokio::select! {
                item = source.next() => item?,
                stop = self.controls.stop(&mut self.pace) => return Ok(Some(stop)),
            };
            let Some(item) = item else { break };
            if let Some(pace) = &mut self.pace {
                pace.take_up(item.boot_ns, Instant::now());
            }
            self.note_size(printer, &item)?;
            if let Some(stop) = self.wait().await {
                return Ok(Some(stop));
            }
            self.draw(printer, &item)?;
            printer.flush()?;
        }
        self.markers.end(printer)?;
        Ok(None)
    }

    /// Waits until the piece in hand is due; keys act meanwhile.
    async fn wait(&mut self) -> Option<Stop> {
        loop {
            let due = match &self.pace {
                Some(pace) => pace.due(),
                None => return None,
            };
            let reached = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.controls.event() => match event {
                    Event::Key(key) => if let Some(stop) = act(key, &mut self.pace) { return Some(stop) },
                    Event::Signal(number) => return Some(Stop::Signal(number)),
                },
                () = reached => return None,
            }
        }
    }

    fn draw(&mut self, printer: &mut Printer, item: &v1::ReplayItem) -> Result<()> {
        let Some(Body::Output(output)) = &item.body else {
            return self.markers.item(printer, item);
        };
        let mut drawn = Vec::with_capacity(output.data.len());
        self.filter.feed(&output.data, &mut drawn);
        printer.raw(&drawn)?;
        if let Some(last) = drawn.last() {
            self.markers.at_line_start(*last == b'\n');
        }
        if output.missing > 0 {
            self.markers.missing(printer, item.wall_ns, output.missing)?;
        }
        Ok(())
    }

    /// Says once, before anything is drawn, that the recorded terminal was larger than this one.
    fn note_size(&mut self, printer: &mut Printer, item: &v1::ReplayItem) -> Result<()> {
        let Some(Body::Output(output)) = item.body.as_ref().filter(|_| !self.sized) else { return Ok(()) };
        self.sized = true;
        let Some((cols, rows)) = print::size() else { return Ok(()) };
        if output.cols <= u32::from(cols) && output.rows <= u32::from(rows) {
            return Ok(());
        }
        let recorded = format!("{}×{}", output.cols, output.rows);
        let text = format!("Recorded at {recorded}, and this window is {cols}×{rows}: enlarge it to see it as it was.");
        let text = printer.paint(Style::Warn, &text);
        printer.raw(text.as_bytes())?;
        printer.raw(b"\r\n")?;
        printer.flush()?;
        if let Some(pace) = &mut self.pace {
            pace.hold(Instant::now(), NOTE_STAYS);
        }
        Ok(())
    }

    /// Leaves the terminal as it should be found.
    fn give_back(&self, printer: &mut Printer) -> Result<()> {
        if self.filter.on_alternate_screen() {
            printer.raw(b"\x1b[?1049l")?;
        }
        printer.raw(RESET)?;
        printer.raw(b"\r\n")?;
        Ok(printer.flush()?)
    }
}

enum Event {
    Key(Key),
    Signal(i32),
}

/// Keyboard and signals.
struct Controls {
    keyboard: Keyboard,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Controls {
    fn open() -> Result<Self> {
        // Signals first: from the moment the keyboard is changed none may end the process unseen.
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (hangup, quit) = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
        Ok(Self { interrupt, terminate, hangup, quit, keyboard: Keyboard::open()? })
    }

    async fn event(&mut self) -> Event {
        tokio::select! {
            key = self.keyboard.key() => Event::Key(key),
            _ = self.interrupt.recv() => Event::Signal(SignalKind::interrupt().as_raw_value()),
            _ = self.terminate.recv() => Event::Signal(SignalKind::terminate().as_raw_value()),
            _ = self.hangup.recv() => Event::Signal(SignalKind::hangup().as_raw_value()),
            _ = self.quit.recv() => Event::Signal(SignalKind::quit().as_raw_value()),
        }
    }

    /// Acts on keys until one, or a signal, ends the replay.
    async fn stop(&mut self, pace: &mut Option<Pace>) -> Stop {
        loop {
            match self.event().await {
                Event::Signal(number) => return Stop::Signal(number),
                Event::Key(key) => {
                    if let Some(stop) = act(key, pace) {
                        return stop;
                    }
                }
            }
        }
    }
}

fn act(key: Key, pace: &mut Option<Pace>) -> Option<Stop> {
    let now = Instant::now();
    match (key, pace) {
        (Key::Quit, _) => return Some(Stop::Key),
        (Key::Pause, Some(pace)) => pace.toggle(now),
        (Key::Faster, Some(pace)) => pace.change(2.0, now),
        (Key::Slower, Some(pace)) => pace.change(0.5, now),
        (_, None) => {}
    }
    None
}
