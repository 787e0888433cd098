"""Bring the KBS's database to the schema of this program.

Each missing migration is applied whole or not at all, and two of these commands at once are safe. `kbs serve` never
changes a schema; it refuses to start on another one.
"""

from __future__ import annotations

import argparse

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP, KbsDirectory
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.settings import open_database


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", "--kbs", dest="directory", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a migration is missing")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    directory = KbsDirectory.locate(arguments.directory)
    database = open_database(KbsConfig.load(directory).database, directory.path)
    try:
        names = migration.list_pending(database) if arguments.check else migration.migrate(database)
    finally:
        database.close()
    if arguments.check and names:
        raise UsageError("wrong-state", f"the KBS database lacks {', '.join(names)}", migration.FIX)
    if arguments.json:
        console.print_value({"applied": names})
    else:
        print("\n".join(f"applied {name}" for name in names) if names else "the schema is this program's")
    return 0
