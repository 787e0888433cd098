"""Print a link that opens the owner's page of the KBS in a browser. It holds an admin token of five minutes: give it to
nobody. The browser must trust, or be told to accept, the KBS's own certificate (kbs.crt)."""

from __future__ import annotations

import argparse
import json

from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kbs", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    client = AdminClient.from_directory(arguments.kbs)
    # Behind the #, where no server and no log sees it; the page's script sends it once, as a form.
    link = f"{client.url}/page/enter#{client.make_token()}"
    print(json.dumps({"url": link}) if arguments.json else link)
    return 0
