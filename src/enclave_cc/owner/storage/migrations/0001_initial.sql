-- Resources (sealed), reference values, policies, platform roots and their collateral, decisions.

CREATE TABLE resource (
    path TEXT NOT NULL, version INTEGER NOT NULL, created INTEGER NOT NULL,
    nonce BLOB, value BLOB,
    PRIMARY KEY (path, version)
) WITHOUT ROWID;

CREATE TABLE reference_value (
    name TEXT NOT NULL, value TEXT NOT NULL, member INTEGER NOT NULL,
    expires INTEGER, added INTEGER NOT NULL, source TEXT NOT NULL,
    PRIMARY KEY (name, value)
) WITHOUT ROWID;

CREATE TABLE policy (
    id TEXT NOT NULL, version INTEGER NOT NULL, created INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (id, version)
) WITHOUT ROWID;

CREATE TABLE root (
    name TEXT PRIMARY KEY, certificate BLOB NOT NULL, simulated INTEGER NOT NULL, added INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE collateral (
    root TEXT NOT NULL REFERENCES root (name) ON DELETE CASCADE, fmspc TEXT NOT NULL, ca TEXT NOT NULL,
    added INTEGER NOT NULL, document TEXT NOT NULL,
    PRIMARY KEY (root, fmspc, ca)
) WITHOUT ROWID;

CREATE TABLE decision (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL, outcome TEXT NOT NULL,
    code TEXT, document TEXT NOT NULL
);
