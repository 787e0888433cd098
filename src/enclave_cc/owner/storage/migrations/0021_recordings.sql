-- Evidence and requests as they came, for `policy replay`. `document` is compressed JSON; it holds no secret.

CREATE TABLE recording (
    number INTEGER PRIMARY KEY, at INTEGER NOT NULL, stage TEXT NOT NULL, subject TEXT NOT NULL,
    decision TEXT, outcome TEXT NOT NULL, code TEXT, document BLOB NOT NULL
);

CREATE INDEX recording_at ON recording (at);

CREATE INDEX recording_subject ON recording (subject);
