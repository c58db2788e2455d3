-- How far each source of leaves was followed; changed in the transaction that takes the leaves.
CREATE TABLE source (
    name     TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) WITHOUT ROWID;
