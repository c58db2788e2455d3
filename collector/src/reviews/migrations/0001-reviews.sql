-- Reviews as they were signed. Not derived from anything.
CREATE TABLE reviews (
    id          INTEGER PRIMARY KEY,
    session     BLOB NOT NULL,
    -- Of the text, to find out what it covers without reading it.
    host_id     BLOB NOT NULL,
    stream      BLOB NOT NULL,
    last_frame  INTEGER NOT NULL,
    text        BLOB NOT NULL,
    signature   BLOB NOT NULL,
    -- Fingerprint of the key that signed.
    key         TEXT NOT NULL,
    received_ns INTEGER NOT NULL,
    UNIQUE (session, text)
) STRICT;
