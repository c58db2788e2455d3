//! What the indexer knows while it works: the rows that may still change, and what a pass adds.

use std::collections::{HashMap, HashSet, VecDeque};

use breakglass_api::frame::Header;
use breakglass_api::v1::{Batch, Event, SearchKind};

use super::attest::{FindingRow, Signer, StatementRow};
use crate::transcript::{Line, Transcript};

/// A session's UUID.
pub type Uuid = [u8; 16];
/// A session: the host that recorded it and its UUID.
pub type SessionKey = (i64, Uuid);
/// A terminal: the session's row and the terminal's id on the host.
pub type TerminalKey = (i64, u64);
/// A process of a session: the session's row, process number and start time.
pub type ProcessKey = (i64, u32, u64);

/// Sessions kept in memory between passes; beyond, all are dropped and read again when needed.
const SESSIONS_KEPT: usize = 4096;
/// Terminals kept in memory between passes; beyond, all are dropped and read again when needed.
const TERMINALS_KEPT: usize = 1024;
/// Terminals whose emulator is in memory. The others are kept as they are stored, a few KiB each.
const TERMINALS_LIVE: usize = 32;

/// Transcripts that are held as they are stored while a pass goes on, bytes; then it ends with the frame at hand. Of honest hosts it is some 100 KiB.
const PARKED_BYTES: usize = 32 * 1024 * 1024;
/// Most that is read of transcripts under way for one frame, bytes. Those beyond begin afresh.
const LOADED_BYTES: usize = 256 * 1024 * 1024;
/// Transcripts that begin in one frame; of further terminals this frame's text is replayed, not searched.
const BEGUN_PER_FRAME: u32 = 512;

/// What is gathered before it is written, of commands and lines, bytes; one event may go beyond.
const CHANGES_BYTES: usize = 16 * 1024 * 1024;

/// A frame ready for indexing.
pub struct Decoded {
    /// Position in the order of arrival.
    pub arrival: i64,
    /// Row of the host.
    pub host: i64,
    /// Frames missing just before.
    pub missing_before: u64,
    /// The content, or why there is none.
    pub content: Result<(Header, Batch), String>,
}

impl Decoded {
    /// The events with the sessions that they belong to.
    pub fn events(&self) -> impl Iterator<Item = (&Event, Option<Uuid>)> {
        let batch = self.content.as_ref().ok().map(|(_, batch)| batch);
        batch.into_iter().flat_map(|batch| batch.events.iter().map(|event| (event, session_of(batch, event))))
    }
}

/// The session of an event; `None` where it has none or the batch does not say a proper one.
pub fn session_of(batch: &Batch, event: &Event) -> Option<Uuid> {
    let index = usize::try_from(event.session).ok()?.checked_sub(1)?;
    batch.sessions.get(index)?.as_slice().try_into().ok()
}

/// A host's row.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// Frames held of it.
    pub frames: u64,
    /// Events in them.
    pub events: u64,
    /// The session that was opened last, until it is closed.
    pub open: Option<Uuid>,
    /// What it signs with, once it has said so.
    pub signer: Option<Signer>,
}

/// A session's row. See the schema for the columns.
#[derive(Clone, Debug, Default)]
pub struct SessionState {
    pub row: i64,
    pub operator: String,
    pub opened: Option<Vec<u8>>,
    pub opened_ns: i64,
    pub deadline_ns: i64,
    pub closed: Option<Vec<u8>>,
    pub closed_ns: i64,
    pub closed_arrival: i64,
    /// Name and fingerprint of the key of everybody who extended it.
    pub joined: Vec<(String, String)>,
    pub commands: u64,
    pub execs: u64,
    pub failed_commands: u64,
    pub terminals: u64,
    pub terminal_bytes: u64,
    pub input_bytes: u64,
    pub withheld_bytes: u64,
    pub stdio_output_bytes: u64,
    pub stdio_input_bytes: u64,
    pub actions: u64,
    pub events: u64,
    pub gaps: u64,
    pub alerts: u64,
    pub witnessed: u64,
    pub left_behind: Option<Vec<u8>>,
    pub changes: u64,
    pub doors: u64,
    pub first_arrival: i64,
    pub last_arrival: i64,
    /// 0 while there is no line.
    pub first_line: i64,
    pub last_line: i64,
}

/// A terminal's row.
#[derive(Default)]
pub struct TerminalState {
    pub row: i64,
    /// From 1, in order of appearance within the session.
    pub number: u64,
    pub pts: u32,
    pub output_bytes: u64,
    pub input_bytes: u64,
    pub first_ns: i64,
    pub last_ns: i64,
    pub transcript: Slot,
    /// The current lines as they were last written; `None` if that is not known.
    pub written: Option<Vec<Line>>,
}

/// Where a terminal's transcript is.
#[derive(Default)]
pub enum Slot {
    /// Not begun, or finished.
    #[default]
    Empty,
    /// As it is stored.
    Parked(Vec<u8>),
    /// In memory.
    Live(Box<Transcript>),
}

impl Slot {
    /// The transcript in memory.
    pub fn live(&mut self) -> &mut Transcript {
        let taken = match std::mem::take(self) {
            Slot::Live(transcript) => transcript,
            Slot::Parked(bytes) => Box::new(Transcript::restore(&bytes).unwrap_or_default()),
            Slot::Empty => Box::default(),
        };
        *self = Slot::Live(taken);
        match self {
            Slot::Live(transcript) => transcript,
            Slot::Empty | Slot::Parked(_) => unreachable!("was made live just now"),
        }
    }

    /// As it is stored.
    pub fn saved(&self) -> Option<Vec<u8>> {
        match self {
            Slot::Empty => None,
            Slot::Parked(bytes) => Some(bytes.clone()),
            Slot::Live(transcript) => Some(transcript.save()),
        }
    }

    /// Lines that are not final yet.
    pub fn current(&self) -> Vec<Line> {
        match self {
            Slot::Empty => Vec::new(),
            Slot::Parked(bytes) => Transcript::restore(bytes).map(|t| t.current()).unwrap_or_default(),
            Slot::Live(transcript) => transcript.current(),
        }
    }

    /// Puts it away; says how many bytes that takes.
    fn park(&mut self) -> usize {
        let Slot::Live(transcript) = self else { return 0 };
        let bytes = transcript.save();
        let length = bytes.len();
        *self = Slot::Parked(bytes);
        length
    }
}

/// The rows that may change, as they are after everything indexed so far.
#[derive(Default)]
pub struct Working {
    pub next_session: i64,
    pub next_terminal: i64,
    pub next_line: i64,
    pub hosts: HashMap<i64, HostState>,
    pub sessions: HashMap<SessionKey, SessionState>,
    pub terminals: HashMap<TerminalKey, TerminalState>,
    /// Terminals whose transcript is in memory, in the order in which they came there.
    live: VecDeque<TerminalKey>,
    /// Bytes of transcripts that were put away or read since the last [`Self::trim`].
    parked: usize,
    /// The frame at hand and how many transcripts have begun in it.
    begun: (i64, u32),
}

impl Working {
    /// A working state that knows nothing but the numbers of the last rows.
    pub fn after(next_session: i64, next_terminal: i64, next_line: i64) -> Self {
        Self { next_session, next_terminal, next_line, ..Self::default() }
    }

    /// Notes that a terminal's transcript is about to be brought to memory; parks the oldest one where there are too many.
    pub fn make_room(&mut self, key: TerminalKey) {
        if matches!(self.terminals.get(&key), Some(TerminalState { transcript: Slot::Live(_), .. })) {
            return;
        }
        while self.live.len() >= TERMINALS_LIVE {
            if let Some(oldest) = self.live.pop_front().and_then(|key| self.terminals.get_mut(&key)) {
                self.parked += oldest.transcript.park();
            }
        }
        self.live.push_back(key);
    }

    /// Whether the frame that arrived as `arrival` may begin one more transcript; counts it.
    pub fn may_begin(&mut self, arrival: i64) -> bool {
        if self.begun.0 != arrival {
            self.begun = (arrival, 0);
        }
        self.begun.1 += 1;
        self.begun.1 <= BEGUN_PER_FRAME
    }

    /// Takes a terminal that was read. Where there is too much of them, it goes on without what it showed so far.
    pub fn take_terminal(&mut self, key: TerminalKey, mut terminal: TerminalState) {
        if let Slot::Parked(bytes) = &terminal.transcript {
            self.parked += bytes.len();
            if self.parked > LOADED_BYTES {
                tracing::warn!(
                    session = key.0,
                    terminal = key.1,
                    "too much stands on terminals at once; text of one is left out"
                );
                self.parked -= bytes.len();
                terminal.transcript = Slot::Empty;
            }
        }
        self.terminals.insert(key, terminal);
    }

    /// Whether a pass should end with the frame at hand, for what is held of transcripts.
    pub fn is_heavy(&self) -> bool {
        self.parked > PARKED_BYTES
    }

    /// Drops what is kept only for speed, once there is much of it. Everything must have been written.
    pub fn trim(&mut self) {
        let is_heavy = self.is_heavy();
        self.parked = 0;
        if is_heavy || self.sessions.len() > SESSIONS_KEPT || self.terminals.len() > TERMINALS_KEPT {
            self.sessions.clear();
            self.terminals.clear();
            self.live.clear();
        }
    }
}

/// A command to insert.
#[derive(Debug)]
pub struct CommandRow {
    pub id: i64,
    pub session: i64,
    pub pid: u32,
    pub start_ns: u64,
    pub boot_ns: u64,
    pub wall_ns: i64,
    pub arrival: i64,
    pub place: i64,
    pub failed: bool,
    pub event: Option<Vec<u8>>,
    pub exit: Option<Vec<u8>>,
    pub exit_wall_ns: i64,
    pub replaced_by: u64,
}

/// A process whose command was written in an earlier pass goes on as another one.
#[derive(Debug)]
pub struct ReplacedRow {
    pub process: ProcessKey,
    /// Id of the new command: the replaced one comes before it.
    pub id: i64,
    pub number: u64,
}

/// The end of a process whose command was written in an earlier pass.
#[derive(Debug)]
pub struct ExitRow {
    pub process: ProcessKey,
    /// Id of the session's last command at that time: what started later has not ended by this.
    pub last: i64,
    pub session: SessionKey,
    pub exit: Vec<u8>,
    pub wall_ns: i64,
    pub unsuccessful: bool,
}

/// A line to insert.
#[derive(Debug)]
pub struct LineRow {
    pub id: i64,
    pub kind: SearchKind,
    pub session: i64,
    pub subject: i64,
    pub wall_ns: i64,
    pub text: String,
}

/// What a pass adds.
#[derive(Default)]
pub struct Changes {
    pub commands: Vec<CommandRow>,
    /// Where in `commands` a process's last one is.
    pub started: HashMap<ProcessKey, usize>,
    pub exits: Vec<ExitRow>,
    pub replaced: Vec<ReplacedRow>,
    pub lines: Vec<LineRow>,
    pub statements: Vec<StatementRow>,
    pub findings: Vec<FindingRow>,
    pub hosts: HashSet<i64>,
    pub sessions: HashSet<SessionKey>,
    pub terminals: HashSet<TerminalKey>,
    /// About what commands and lines take in memory.
    pub bytes: usize,
}

impl Changes {
    /// Whether it is time to write what there is.
    pub fn is_large(&self) -> bool {
        self.bytes >= CHANGES_BYTES
    }
}

/// The id of a session's command; `None` beyond four thousand million commands or sessions, which are then not indexed.
pub fn command_id(session: i64, number: u64) -> Option<i64> {
    let session = u32::try_from(session).ok().filter(|s| *s <= i32::MAX.cast_unsigned())?;
    let number = u32::try_from(number).ok()?;
    Some((i64::from(session) << 32) | i64::from(number))
}

/// A command's number within its session, from its id.
pub fn command_number(id: i64) -> u64 {
    u64::from(id.cast_unsigned() as u32)
}
