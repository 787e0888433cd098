"""The database behind the KBS: SQLite or PostgreSQL, one interface, explicit migrations."""
