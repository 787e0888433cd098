-- A number per topic that grows with each change, by which processes notice what others changed.

CREATE TABLE generation (topic TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
