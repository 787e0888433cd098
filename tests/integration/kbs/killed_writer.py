"""A writer of the KBS's database that is killed, with the PostgreSQL under it or without; the suites say what it writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from private_postgresql import PrivatePostgresql


class KilledWriter:
    """A new database, in SQLite or on `server`, and one writer after the other that is killed in it."""

    def __init__(self, writer: Path, directory: Path, server: PrivatePostgresql | None) -> None:
        self.writer = writer
        self.directory = directory
        self.server = server
        self.url = f"sqlite:{directory / 'kbs.db'}" if server is None else server.url(server.create_database())
        database = open_database(DatabaseSettings(self.url), directory, create=True)
        migration.migrate(database)
        database.close()

    def run(self, *words: str, statement: int = 0, delay: float = 0, kill_server: bool = False) -> list[str]:
        """The whole lines that the writer, started with `words`, told before it was killed.

        It kills itself before its statement number `statement`, or is killed `delay` seconds after its first line."""
        command = [sys.executable, str(self.writer), self.url, str(self.directory), *words, str(statement)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            first = b"" if statement else process.stdout.readline()
            time.sleep(delay)
            if kill_server:
                assert self.server is not None
                self.server.kill()
            if not statement:
                process.send_signal(signal.SIGKILL)
            lines = (first + process.stdout.read()).splitlines(keepends=True)
            errors = process.stderr.read().decode()
        if kill_server:
            assert self.server is not None
            self.server.start()
        else:
            assert process.returncode == -signal.SIGKILL, errors
        if self.server is not None:
            # PostgreSQL may have a COMMIT of the dead in hand, which nobody waits for; what it does with it is done after this.
            self.server.wait_for_clients_to_end()
        return [line.decode() for line in lines if line.endswith(b"\n")]
