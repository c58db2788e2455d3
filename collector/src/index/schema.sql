-- Everything here is derived from the frames and can be deleted at any time.

-- How far the frames have been followed; changed in the transaction that writes what they yielded.
CREATE TABLE position (
    version  INTEGER NOT NULL,
    store_id BLOB NOT NULL,
    arrival  INTEGER NOT NULL
) STRICT;

CREATE TABLE hosts (
    host         INTEGER PRIMARY KEY,
    frames       INTEGER NOT NULL,
    events       INTEGER NOT NULL,
    open_session BLOB,
    -- What it is known by, and what it signs with now; absent until it has introduced a key.
    host_key     BLOB,
    epoch        INTEGER NOT NULL,
    signing_key  BLOB
) STRICT;

-- Statements that hold, in the order in which they came. Links of the chain of keys and checkpoints.
CREATE TABLE statements (
    id       INTEGER PRIMARY KEY,
    host     INTEGER NOT NULL,
    host_key BLOB NOT NULL,
    epoch    INTEGER NOT NULL,
    -- Whether it names the next key.
    link     INTEGER NOT NULL,
    stream   BLOB NOT NULL,
    -- The last frame that it covers, and the frame that holds it.
    seq      INTEGER NOT NULL,
    carrier  INTEGER NOT NULL,
    arrival  INTEGER NOT NULL,
    -- The session whose opening (2) or closing (4) it marks; see the checkpoint module of the breakglass-api crate.
    session  BLOB,
    mark     INTEGER NOT NULL,
    signed   BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX links_by_epoch ON statements (host, host_key, epoch) WHERE link = 1;
CREATE INDEX statements_by_seq ON statements (host, stream, seq);
CREATE INDEX statements_by_session ON statements (session) WHERE session IS NOT NULL;

-- What does not hold. Belongs to the session that was open.
CREATE TABLE findings (
    id      INTEGER PRIMARY KEY,
    host    INTEGER NOT NULL,
    session BLOB,
    carrier INTEGER NOT NULL,
    wall_ns INTEGER NOT NULL,
    code    TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;

CREATE INDEX findings_by_session ON findings (host, session);

-- A session belongs to the host that recorded it: two hosts cannot write into one.
CREATE TABLE sessions (
    id              INTEGER PRIMARY KEY,
    uuid            BLOB NOT NULL,
    host            INTEGER NOT NULL,
    operator        TEXT NOT NULL,
    opened          BLOB,
    opened_ns       INTEGER NOT NULL,
    deadline_ns     INTEGER NOT NULL,
    closed          BLOB,
    closed_ns       INTEGER NOT NULL,
    -- Arrival number of the frame that closes it; 0 while it is open.
    closed_arrival  INTEGER NOT NULL,
    -- Who else opened it, by extending it: a JSON list of [name, fingerprint of the key].
    joined          TEXT NOT NULL,
    commands        INTEGER NOT NULL,
    execs           INTEGER NOT NULL,
    failed_commands INTEGER NOT NULL,
    terminals       INTEGER NOT NULL,
    terminal_bytes  INTEGER NOT NULL,
    input_bytes     INTEGER NOT NULL,
    withheld_bytes  INTEGER NOT NULL,
    stdio_output_bytes INTEGER NOT NULL,
    stdio_input_bytes  INTEGER NOT NULL,
    actions         INTEGER NOT NULL,
    events          INTEGER NOT NULL,
    gaps            INTEGER NOT NULL,
    alerts          INTEGER NOT NULL,
    witnessed       INTEGER NOT NULL,
    -- The encoded LeftBehind, cut where it is large, and its counts.
    left_behind     BLOB,
    changes         INTEGER NOT NULL,
    doors           INTEGER NOT NULL,
    -- Arrival numbers of the frames that hold it.
    first_arrival   INTEGER NOT NULL,
    last_arrival    INTEGER NOT NULL,
    -- Ids of its lines, to search in them alone.
    first_line      INTEGER NOT NULL,
    last_line       INTEGER NOT NULL,
    UNIQUE (host, uuid)
) STRICT;

CREATE INDEX sessions_by_uuid ON sessions (uuid);
CREATE INDEX sessions_by_time ON sessions (opened_ns, id);

CREATE TABLE commands (
    -- Session in the upper half, number within the session in the lower.
    id           INTEGER PRIMARY KEY,
    session      INTEGER NOT NULL,
    pid          INTEGER NOT NULL,
    start_ns     INTEGER NOT NULL,
    boot_ns      INTEGER NOT NULL,
    wall_ns      INTEGER NOT NULL,
    -- Where the event lies: the frame's arrival number and the place in it.
    arrival      INTEGER NOT NULL,
    place        INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    -- The encoded Exec or ExecFailed; absent where it is large and has to be taken from the frame.
    event        BLOB,
    exit         BLOB,
    exit_wall_ns INTEGER NOT NULL,
    -- Number of the command that the same process became; 0 if none.
    replaced_by  INTEGER NOT NULL
) STRICT;

CREATE INDEX commands_by_process ON commands (session, pid, start_ns);

CREATE TABLE terminals (
    id           INTEGER PRIMARY KEY,
    session      INTEGER NOT NULL,
    terminal     INTEGER NOT NULL,
    number       INTEGER NOT NULL,
    pts          INTEGER NOT NULL,
    output_bytes INTEGER NOT NULL,
    input_bytes  INTEGER NOT NULL,
    first_ns     INTEGER NOT NULL,
    last_ns      INTEGER NOT NULL,
    -- The transcript where it stands, to go on with.
    state        BLOB,
    UNIQUE (session, terminal)
) STRICT;

-- What can be found: command lines of the session and of others, and lines of terminals that are final.
CREATE TABLE lines (
    id       INTEGER PRIMARY KEY,
    kind     INTEGER NOT NULL,
    session  INTEGER NOT NULL,
    -- A command's number, a terminal's id, or nothing.
    subject  INTEGER NOT NULL,
    wall_ns  INTEGER NOT NULL,
    text     TEXT NOT NULL
) STRICT;

-- Rows by the id of their line. Which trigrams a line holds, not where: a match is checked against the line itself.
CREATE VIRTUAL TABLE lines_text USING fts5 (text, content = '', tokenize = 'trigram', detail = none, columnsize = 0);

-- Lines of terminals that can still change. Few: they are read through, not indexed.
CREATE TABLE current_lines (
    terminal INTEGER NOT NULL,
    place    INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    wall_ns  INTEGER NOT NULL,
    text     TEXT NOT NULL,
    PRIMARY KEY (terminal, place)
) STRICT, WITHOUT ROWID;
