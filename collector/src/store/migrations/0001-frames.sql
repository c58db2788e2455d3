-- Who ever connected. Not derived from frames: the name is the enrolled one, from the certificate.
CREATE TABLE hosts (
    id            INTEGER PRIMARY KEY,
    host_id       TEXT NOT NULL UNIQUE,
    hostname      TEXT NOT NULL,
    tier          TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    last_seen_ns  INTEGER NOT NULL
) STRICT;

-- The evidence: every frame, byte for byte as it came, in the order in which it was made durable here.
CREATE TABLE frames (
    arrival        INTEGER PRIMARY KEY AUTOINCREMENT,
    host           INTEGER NOT NULL REFERENCES hosts (id),
    stream_id      BLOB NOT NULL,
    seq            INTEGER NOT NULL,
    hash           BLOB NOT NULL,
    events         INTEGER NOT NULL,
    -- Frames missing between the one before and this one, because the agent no longer had them.
    missing_before INTEGER NOT NULL,
    received_ns    INTEGER NOT NULL,
    bytes          BLOB NOT NULL,
    UNIQUE (stream_id, seq)
) STRICT;

CREATE INDEX frames_by_host ON frames (host, arrival);

-- Tells this store from any other, so that an index is never used with frames that it was not built from.
CREATE TABLE identity (
    store_id BLOB NOT NULL
) STRICT;

INSERT INTO identity VALUES (randomblob(16));
