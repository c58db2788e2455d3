-- How many leaves there are: the index of the next one.
CREATE TABLE log (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    size INTEGER NOT NULL
);
INSERT INTO log VALUES (1, 0);

-- The index of every leaf, by its hash, so that one that is handed in again keeps it.
CREATE TABLE leaf (
    hash BLOB PRIMARY KEY,
    idx  INTEGER NOT NULL
) WITHOUT ROWID;

-- Leaves that are not in a signed tree yet.
CREATE TABLE pending (
    idx  INTEGER PRIMARY KEY,
    data BLOB NOT NULL
);
