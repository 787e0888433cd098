"""Change the store key: put a new key first, and seal every value anew under it.

Works beside running servers, which notice within a second and open values of both keys. Killed at any point, it goes on
where it was when it is run again. The old key stays in store.key until --finish, which makes sure that nothing is sealed
under it; run that when every machine that serves has the store.key with both keys. With --prepare only the new key is put
there, to be copied to other machines first.
"""

from __future__ import annotations

import argparse
import io
from contextlib import ExitStack

from enclave_cc import console
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP, KbsDirectory
from enclave_cc.owner.kbs.resource_stores import open_key_source, open_resources
from enclave_cc.owner.resources.sealing import compute_key_id
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.settings import open_database


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", "--kbs", dest="directory", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--prepare", action="store_true", help="add the new key, seal nothing yet")
    step.add_argument("--finish", action="store_true", help="seal what is left, and drop the old key")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    directory = KbsDirectory.locate(arguments.directory)
    config = KbsConfig.load(directory)
    keys = open_key_source(config.resources.key)
    if not arguments.finish:
        keys.begin_change()
    resealed, to_do = 0, ""
    with ExitStack() as closing:
        database = open_database(config.database, directory.path)
        closing.callback(database.close)
        migration.check(database)
        if arguments.finish:
            keys.wait_until_known()
        if not arguments.prepare:
            resources = closing.enter_context(open_resources(config.resources, keys, database, directory.path))
            resealed = sum(count for store in resources.sealed.values() for count in store.reseal())
        if arguments.finish:
            to_do = keys.end_change()
        ids = [compute_key_id(key).hex() for key in keys.read()]
        _record(directory, config, database, {"key_ids": ids, "resealed": resealed})
    if arguments.json:
        console.print_value({"resealed": resealed, "key_ids": ids, "to_do": to_do})
    else:
        print(f"sealed {resealed} values anew; the KBS has {len(ids)} store key{'s' if len(ids) > 1 else ''}")
        if to_do:
            print(to_do)
    return 0


def _record(directory: KbsDirectory, config: KbsConfig, database: Database, members: dict[str, object]) -> None:
    """Key ids tell nothing of the keys."""
    audit = audit_keys.read(directory.path)
    log = AuditLog(database, audit.signer, keys=audit.verifiers, settings=config.audit)
    AuditTrail(log, Log(io.StringIO())).change(kinds.STORE_REKEYED, None, members)
