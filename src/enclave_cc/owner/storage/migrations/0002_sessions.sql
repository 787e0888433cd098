-- Challenges that were answered: used up, and with the token if the attester was accepted.

CREATE TABLE session (
    id BLOB PRIMARY KEY, expires INTEGER NOT NULL, token BLOB
) WITHOUT ROWID;

CREATE INDEX session_expires ON session (expires);
