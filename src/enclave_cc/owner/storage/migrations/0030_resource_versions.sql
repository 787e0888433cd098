-- Heads, histories and tags of resources. Values stay in `resource`, which nothing but reading a value touches.

CREATE TABLE resource_head (
    path TEXT PRIMARY KEY, last INTEGER NOT NULL, present INTEGER NOT NULL
) WITHOUT ROWID;

-- What a listing walks, however many paths were removed.
CREATE INDEX resource_present ON resource_head (path) WHERE present = 1;

CREATE TABLE resource_version (
    path TEXT NOT NULL, version INTEGER NOT NULL, created INTEGER NOT NULL, size INTEGER NOT NULL, author TEXT NOT NULL,
    removed INTEGER, removed_by TEXT NOT NULL, key_id BLOB NOT NULL,
    PRIMARY KEY (path, version)
) WITHOUT ROWID;

CREATE TABLE resource_tag (
    path TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (path, key)
) WITHOUT ROWID;

CREATE INDEX resource_by_tag ON resource_tag (key, value, path);

-- Until now a removed path was a version without a value, and there was one store key.
INSERT INTO resource_version (path, version, created, size, author, removed, removed_by, key_id)
    SELECT path, version, created, COALESCE(length(value) - 16, 0), '', CASE WHEN value IS NULL THEN created END, '',
        CAST('' AS BLOB) FROM resource;

INSERT INTO resource_head (path, last, present)
    SELECT path, max(version), 1 FROM resource GROUP BY path;

UPDATE resource_head SET present = 0
    WHERE EXISTS (SELECT 1 FROM resource AS r WHERE r.path = resource_head.path AND r.value IS NULL);

DELETE FROM resource WHERE value IS NULL;
