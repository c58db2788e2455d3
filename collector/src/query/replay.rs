//! A session's terminal as it was, with the commands as markers.

use async_stream::try_stream;
use breakglass_api::frame::Header;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::replay_item::Body as Item;
use breakglass_api::v1::stdio_data::Direction;
use breakglass_api::v1::{Command, Event, Gap, ReplayItem, ReplayRequest};
use futures_util::Stream;
use tonic::Status;

use super::{QueryService, convert, unavailable};
use crate::index::{Decoded, SessionRecord, Uuid, starts_command};

/// Picks what a replay shows, event by event.
struct Picker {
    session: Uuid,
    request: ReplayRequest,
    /// The terminal to show; 0 until the first output tells.
    terminal: u64,
    /// Number of the last command.
    commands: u64,
}

impl QueryService {
    /// The items of a replay.
    pub(super) async fn replay_items(
        &self,
        record: SessionRecord,
        request: ReplayRequest,
    ) -> Result<impl Stream<Item = Result<ReplayItem, Status>> + use<>, Status> {
        let session = record.state.row;
        let terminal = match request.terminal {
            0 => self.index.first_shown(session).await.map_err(unavailable)?.unwrap_or(0),
            terminal if request.follow => terminal,
            terminal => match self.index.has_terminal(session, terminal).await.map_err(unavailable)? {
                true => terminal,
                false => return Err(Status::not_found(format!("the session has no terminal {terminal}"))),
            },
        };
        let mut tail = self.tail_session(&record, request.follow).await?;
        let mut picker = Picker { session: record.uuid, request, terminal, commands: 0 };
        Ok(try_stream! {
            while let Some(frames) = tail.next().await? {
                for frame in frames {
                    for item in picker.frame(frame) {
                        yield item;
                    }
                }
            }
        })
    }
}

impl Picker {
    fn frame(&mut self, frame: Decoded) -> Vec<ReplayItem> {
        let (header, batch) = match frame.content {
            Ok(content) => content,
            Err(_) => {
                let lost = (frame.missing_before > 0).then(|| convert::lost_frames(frame.missing_before));
                let gaps = lost.into_iter().chain([convert::unreadable_frame()]);
                return gaps.map(|gap| ReplayItem { body: Some(Item::Gap(gap)), ..ReplayItem::default() }).collect();
            }
        };
        let mut items = Vec::new();
        if frame.missing_before > 0 {
            let gap = convert::lost_frames(frame.missing_before);
            items.push(item(&header, header.first_boot_ns, Item::Gap(gap)));
        }
        let ours: Vec<bool> =
            batch.events.iter().map(|e| crate::index::session_of(&batch, e) == Some(self.session)).collect();
        for (event, ours) in batch.events.into_iter().zip(ours) {
            let boot_ns = event.boot_ns;
            let body = if ours { self.pick(&header, event) } else { host_gap(event).map(Item::Gap) };
            items.extend(body.map(|body| item(&header, boot_ns, body)));
        }
        items
    }

    fn pick(&mut self, header: &Header, event: Event) -> Option<Item> {
        if starts_command(&event) {
            self.commands += 1;
            return self.request.commands.then(|| Item::Command(self.command(header, event)));
        }
        match event.body? {
            Body::StdioData(data) => {
                let wanted = self.request.input || data.direction() == Direction::Output;
                (self.request.stdio && wanted).then_some(Item::Stdio(data))
            }
            Body::TerminalOutput(output) => {
                if self.terminal == 0 {
                    self.terminal = output.terminal;
                }
                self.shows(output.terminal).then_some(Item::Output(output))
            }
            Body::TerminalInput(input) => {
                (self.request.input && self.shows(input.terminal)).then_some(Item::Input(input))
            }
            Body::InputWithheld(withheld) => {
                (self.request.input && self.shows(withheld.terminal)).then_some(Item::Withheld(withheld))
            }
            Body::Gap(gap) => Some(Item::Gap(gap)),
            _ => None,
        }
    }

    fn shows(&self, terminal: u64) -> bool {
        !self.request.stdio && (self.request.all_terminals || terminal == self.terminal)
    }

    fn command(&self, header: &Header, event: Event) -> Command {
        let mut command = Command {
            number: self.commands,
            wall_ns: header.wall_ns(event.boot_ns),
            session: convert::uuid_text(self.session),
            boot_ns: event.boot_ns,
            ..Command::default()
        };
        match event.body {
            Some(Body::Exec(exec)) => command.exec = Some(exec),
            Some(Body::ExecFailed(failed)) => command.failed = Some(failed),
            _ => {}
        }
        command
    }
}

/// A gap that belongs to no session may have been in this one.
fn host_gap(event: Event) -> Option<Gap> {
    match event.body {
        Some(Body::Gap(gap)) if event.session == 0 => Some(gap),
        _ => None,
    }
}

fn item(header: &Header, boot_ns: u64, body: Item) -> ReplayItem {
    ReplayItem { wall_ns: header.wall_ns(boot_ns), boot_ns, body: Some(body) }
}
