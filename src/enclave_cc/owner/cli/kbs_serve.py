"""Serve the key broker. Decisions and faults go to stderr, one JSON object per line."""

from __future__ import annotations

import argparse
import os

from enclave_cc.owner.kbs.directory import KbsDirectory, split_listen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", "--kbs", dest="directory", metavar="DIR", help="default: $ENCLAVE_CC_KBS, else ~/.config/enclave-cc/kbs"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="instead of kbs.toml's; port 0 takes any free one")


def run(arguments: argparse.Namespace) -> int:
    import asyncio

    from enclave_cc.owner.kbs import assembly, server
    from enclave_cc.owner.kbs.config import KbsConfig

    directory = KbsDirectory.locate(arguments.directory)
    config = KbsConfig.load(directory)
    host, port = config.listen if arguments.listen is None else split_listen(arguments.listen)

    def announce(url: str) -> None:
        # A KBS on all addresses is reached from this machine by loopback.
        shown = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        replacement = directory.url_file.with_suffix(f".{os.getpid()}")
        replacement.write_text(shown + "\n")
        replacement.replace(directory.url_file)
        print(f"kbs ready {shown}", flush=True)

    with assembly.assemble(directory, config) as kbs:
        asyncio.run(server.serve(kbs, host, port, announce))
    return 0
