-- What no host could have recorded: that it was silent.
CREATE TABLE alarms (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    host_id     TEXT NOT NULL,
    hostname    TEXT NOT NULL,
    -- The session that was open; empty if none.
    session     TEXT NOT NULL,
    code        TEXT NOT NULL,
    message     TEXT NOT NULL,
    began_ns    INTEGER NOT NULL,
    -- 0 while it lasts.
    ended_ns    INTEGER NOT NULL DEFAULT 0,
    -- Empty and 0 before somebody looked at it.
    reviewed_by TEXT NOT NULL DEFAULT '',
    reviewed_ns INTEGER NOT NULL DEFAULT 0,
    note        TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX alarms_lasting ON alarms (host_id) WHERE ended_ns = 0;
CREATE INDEX alarms_open ON alarms (id) WHERE reviewed_ns = 0;

-- What people did by way of the collector. Written before it takes effect; only the outcome is filled in later.
CREATE TABLE acts (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    wall_ns INTEGER NOT NULL,
    who     TEXT NOT NULL,
    what    TEXT NOT NULL,
    host_id TEXT NOT NULL,
    session TEXT NOT NULL,
    reason  TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT ''
) STRICT;
