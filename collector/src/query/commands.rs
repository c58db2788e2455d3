//! The commands of a session.

use std::collections::BTreeSet;

use async_stream::try_stream;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::{Command, ListCommandsRequest};
use futures_util::Stream;
use tonic::Status;

use super::{QueryService, convert, tail, unavailable};
use crate::index::{CommandRecord, Decoder, SessionRecord};

/// Commands read from the index at once.
const PAGE: u32 = 256;
/// Commands whose end is still reported to a follower: the latest ones. More do not run at once in a session that people type.
const RUNNING_MAX: usize = 256;

impl QueryService {
    /// Commands in order of their start. A follower gets each command when it starts, and once more, with the same number, when it
    /// has ended or given way to another in its process.
    pub(super) fn commands(
        self,
        record: SessionRecord,
        request: ListCommandsRequest,
    ) -> impl Stream<Item = Result<Command, Status>> {
        try_stream! {
            let session = record.state.row;
            let name = convert::uuid_text(record.uuid);
            let mut after = request.after;
            let mut running = BTreeSet::new();
            let mut indexed = self.index.indexed();
            let mut shutdown = self.shutdown.clone();
            loop {
                // Asked first: whatever closed the session came after its commands.
                indexed.borrow_and_update();
                let closed = !request.follow || self.is_closed(session).await?;
                loop {
                    let page = self.index.commands(session, after, PAGE).await.map_err(unavailable)?;
                    let Some(last) = page.last() else { break };
                    after = last.number;
                    for command in page {
                        if request.follow && !is_over(&command) {
                            running.insert(command.number);
                        }
                        yield self.command(&command, &name).await?;
                    }
                }
                while running.len() > RUNNING_MAX {
                    running.pop_first();
                }
                for command in self.ended(session, &mut running).await? {
                    yield self.command(&command, &name).await?;
                }
                if closed {
                    break;
                }
                tail::wait(&mut indexed, &mut shutdown).await?;
            }
        }
    }

    async fn is_closed(&self, session: i64) -> Result<bool, Status> {
        let session = self.index.session_again(session).await.map_err(unavailable)?;
        Ok(session.is_none_or(|session| session.state.closed.is_some()))
    }

    /// Those of `running` that have ended; they are taken out.
    async fn ended(&self, session: i64, running: &mut BTreeSet<u64>) -> Result<Vec<CommandRecord>, Status> {
        let mut ended = Vec::new();
        for number in running.iter() {
            let command = self.index.command(session, *number).await.map_err(unavailable)?;
            ended.extend(command.filter(is_over));
        }
        for command in &ended {
            running.remove(&command.number);
        }
        Ok(ended)
    }

    /// The whole command, from its frame where the index has only the rest.
    async fn command(&self, record: &CommandRecord, session: &str) -> Result<Command, Status> {
        let mut command = convert::command(record, session.to_owned());
        if record.event.is_some() {
            return Ok(command);
        }
        let frame = self.store.frame(record.arrival).await.map_err(unavailable)?;
        let missing = || Status::data_loss(format!("frame {} of the store cannot be read", record.arrival));
        let decoded = Decoder::new(self.store.clone()).decode(frame.into_iter().collect()).await;
        let content = decoded.map_err(unavailable)?.pop().and_then(|frame| frame.content.ok());
        let (_, batch) = content.ok_or_else(missing)?;
        match batch.events.into_iter().nth(record.place).and_then(|event| event.body) {
            Some(Body::Exec(exec)) => command.exec = Some(exec),
            Some(Body::ExecFailed(failed)) => command.failed = Some(failed),
            _ => return Err(missing()),
        }
        Ok(command)
    }
}

/// Whether there is nothing more to say of a command.
fn is_over(command: &CommandRecord) -> bool {
    command.failed || command.exit.is_some() || command.replaced_by != 0
}
