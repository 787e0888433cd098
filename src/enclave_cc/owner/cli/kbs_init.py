"""Make a KBS directory: TLS identity, token, admin and store keys, configuration, an empty database.

With --database the directory is made and nothing is connected to; `kbs migrate` then makes the tables.
"""

from __future__ import annotations

import argparse

from enclave_cc.owner.kbs import directory
from enclave_cc.owner.storage.settings import DEFAULT_URL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", "--kbs", dest="directory", metavar="DIR", help="default: $ENCLAVE_CC_KBS, else ~/.config/enclave-cc/kbs"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", default=directory.DEFAULT_LISTEN, help="default: %(default)s")
    parser.add_argument(
        "--hostname",
        metavar="NAME",
        action="append",
        default=[],
        help="another name or address of the TLS certificate; repeatable",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        default=DEFAULT_URL,
        help="postgresql://USER@HOST/NAME for a KBS of many instances; default: %(default)s in the directory",
    )


def run(arguments: argparse.Namespace) -> int:
    made = directory.create(
        directory.KbsDirectory.locate(arguments.directory).path.absolute(),
        listen=arguments.listen,
        hostnames=arguments.hostname,
        database=arguments.database,
    )
    if not arguments.database.startswith("sqlite:"):
        print(f"make the tables with: enclave-cc kbs migrate --dir {made.path}")
    print(f"made {made.path}; nodes pin {made.certificate}; start it with: enclave-cc kbs serve --dir {made.path}")
    return 0
