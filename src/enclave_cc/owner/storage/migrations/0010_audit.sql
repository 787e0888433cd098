-- The audit log (docs/formats/audit.md). Rows are only ever added; the head alone changes.

CREATE TABLE audit_head (
    id INTEGER NOT NULL PRIMARY KEY, origin TEXT NOT NULL, size INTEGER NOT NULL,
    tree BLOB NOT NULL, last BLOB NOT NULL, signed_at INTEGER NOT NULL
);
CREATE TABLE audit_entry (
    leaf_index INTEGER NOT NULL PRIMARY KEY, leaf_hash BLOB NOT NULL,
    subject TEXT, number INTEGER, decision TEXT, attestation TEXT, entry BLOB NOT NULL
);
CREATE INDEX audit_entry_subject ON audit_entry (subject, leaf_index) WHERE subject IS NOT NULL;
CREATE INDEX audit_entry_decision ON audit_entry (decision) WHERE decision IS NOT NULL;
CREATE TABLE audit_node (
    level INTEGER NOT NULL, node_index INTEGER NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (level, node_index)
) WITHOUT ROWID;
CREATE TABLE audit_checkpoint (
    size INTEGER NOT NULL, key_id TEXT NOT NULL, at INTEGER NOT NULL, note BLOB NOT NULL,
    PRIMARY KEY (size, key_id)
) WITHOUT ROWID;
