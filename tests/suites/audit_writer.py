"""A process that appends to an audit log until it is killed: `audit_writer.py URL DIRECTORY THREADS [STATEMENT]`.

DIRECTORY has audit.key and audit.pub. Each acknowledged entry is a line on standard output: index, leaf hash, path.
With STATEMENT it appends alone, and kills itself (SIGKILL) before its so-manieth statement, COMMIT included.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from mortal_database import Mortal

from enclave_cc.owner.audit.kinds import Draft
from enclave_cc.owner.audit.log import AuditLog, Settings
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database


def append(log: AuditLog, path: str) -> None:
    for number in range(10_000):
        receipt = log.append(Draft.make("resource-set", {"number": number}, subject=path))
        os.write(1, f"{receipt.index} {receipt.leaf.hex()} {path}\n".encode())  # one write: lines do not mix


def main(url: str, directory: str, threads: str, statement: str = "0") -> None:
    keys = audit_keys.read(Path(directory))
    database: Any = open_database(DatabaseSettings(url), Path(directory))
    log = AuditLog(database, keys.signer, keys=keys.verifiers, settings=Settings(checkpoint_every=int(statement == "0")))
    if int(statement):
        log._database = Mortal(database, int(statement))  # type: ignore[assignment]
    writers = [threading.Thread(target=append, args=(log, f"acme/key/{i}"), daemon=True) for i in range(int(threads))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
