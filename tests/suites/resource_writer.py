"""A process that writes resources until it is killed: `resource_writer.py URL DIRECTORY THREADS LABEL [STATEMENT]`.

Each thread has a path of its own. Standard output tells, a line each, what it is about to do and what was acknowledged:

    ? PATH TEXT        about to put a value made of TEXT, or to delete it (`-`)
    ! PATH TEXT N      put as version N, or deleted (0)

With STATEMENT it writes alone, and kills itself (SIGKILL) before its so-manieth statement, COMMIT included.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

from mortal_database import Mortal

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import UsageError
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.sealing import Keyring
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from enclave_cc.wire.rcar.uri import ResourcePath

KEY = Secret(bytes(range(32)))
DELETED = "-"


def write(store: DatabaseResourceStore, name: str, label: str) -> None:
    path = ResourcePath.parse(name)
    for number in range(100_000):
        text = DELETED if number % 7 == 6 else f"{label}.{number};"
        tell(f"? {name} {text}")
        version = 0
        if text == DELETED:
            try:
                store.delete(path)
            except UsageError:  # a process before this one was killed behind its delete
                continue
        else:
            version = store.put(path, Secret(text.encode() * random.choice((1, 10, 10_000))))
        tell(f"! {name} {text} {version}")


def tell(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # one write: lines do not mix


def main(url: str, directory: str, threads: str, label: str, statement: str = "0") -> None:
    database: Any = open_database(DatabaseSettings(url), Path(directory))
    if int(statement):
        database = Mortal(database, int(statement))
    store = DatabaseResourceStore(database, Keyring([KEY]))
    writers = [
        threading.Thread(target=write, args=(store, f"default/kill/{number}", label), daemon=True) for number in range(int(threads))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
