-- Which version of a policy is active, apart from which is newest, and since when.

CREATE TABLE policy_active (
    id TEXT PRIMARY KEY, version INTEGER NOT NULL, at INTEGER NOT NULL, actor TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE policy_activation (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, version INTEGER, at INTEGER NOT NULL, actor TEXT NOT NULL
);

CREATE INDEX policy_activation_id ON policy_activation (id, number);

ALTER TABLE policy ADD COLUMN author TEXT NOT NULL DEFAULT '';

ALTER TABLE policy ADD COLUMN note TEXT NOT NULL DEFAULT '';

INSERT INTO policy_active (id, version, at, actor) SELECT id, max(version), max(created), '' FROM policy GROUP BY id;

INSERT INTO policy_activation (id, version, at, actor) SELECT id, version, created, '' FROM policy ORDER BY created, id, version;

-- Reference values: who added them and when they were retired; how often a name was changed; who may sign statements.

ALTER TABLE reference_value ADD COLUMN version INTEGER NOT NULL DEFAULT 1;

ALTER TABLE reference_value ADD COLUMN added_by TEXT NOT NULL DEFAULT '';

ALTER TABLE reference_value ADD COLUMN retired INTEGER;

ALTER TABLE reference_value ADD COLUMN retired_by TEXT;

ALTER TABLE reference_value ADD COLUMN retired_why TEXT;

CREATE TABLE reference_name (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO reference_name (name, version) SELECT DISTINCT name, 1 FROM reference_value;

CREATE TABLE reference_signer (
    name TEXT PRIMARY KEY, key_id TEXT NOT NULL UNIQUE, pem TEXT NOT NULL, added INTEGER NOT NULL, added_by TEXT NOT NULL
) WITHOUT ROWID;
