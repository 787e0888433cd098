"""Make this node's containerd know enclave-cc: a drop-in for its configuration, the shim's link, the snapshotter's unit.

containerd is asked whether it takes the new configuration; nothing is restarted unless asked for. --undo puts back what
was there, byte for byte. Prints the RuntimeClass that makes pods use it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.host.cli import options
from enclave_cc.host.install import node

_CONFIG = "/etc/containerd/config.toml"
_UNITS = Path("/etc/systemd/system")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("--containerd", nargs="?", const=_CONFIG, metavar="FILE", help=f"its configuration (default: {_CONFIG})")
    parser.add_argument("--undo", action="store_true", help="take everything out again")
    parser.add_argument(
        "--per-runtime",
        action="store_true",
        help="use our snapshotter for our pods only (containerd 1.7 and newer; pods need an annotation then)",
    )
    parser.add_argument("--restart", action="store_true", help="restart snapshotter and containerd by systemd")
    parser.add_argument("--binary", default="containerd", metavar="PROGRAM", help="containerd's program (default: containerd)")
    parser.add_argument(
        "--links", type=Path, default=Path("/usr/local/bin"), metavar="DIR", help="on containerd's PATH (default: /usr/local/bin)"
    )
    parser.add_argument("--units", type=Path, metavar="DIR", help=f"systemd's units (default: {_UNITS} where systemd runs)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.containerd is None:
        raise UsageError("usage", "say what to set up", "The only choice today is --containerd.")
    settings = options.load(arguments)
    if arguments.undo:
        paths = node.take_out(settings)
        if arguments.restart:
            node.restart(with_snapshotter=False)
        _report(arguments, "put back", paths, manifest=False)
        return 0
    units = arguments.units or (_UNITS if Path("/run/systemd/system").is_dir() else None)
    site = node.Site(Path(arguments.containerd).absolute(), arguments.binary, arguments.links.absolute(), units)
    paths = node.set_up(settings, site, per_runtime=arguments.per_runtime)
    if arguments.restart:
        node.restart(with_snapshotter=True)
    _report(arguments, "wrote", paths, manifest=True)
    return 0


def _report(arguments: argparse.Namespace, verb: str, paths: list[Path], *, manifest: bool) -> None:
    if arguments.json:
        console.print_value({"paths": list(map(str, paths)), "runtime_class": node.RUNTIME_CLASS if manifest else None})
        return
    for path in paths:
        print(f"{verb} {path}", file=sys.stderr)
    if not arguments.restart:
        first = f"systemctl enable --now {node.SNAPSHOTTER} && " if manifest else ""
        print(f"nothing was restarted; when it suits: {first}systemctl restart containerd", file=sys.stderr)
    if manifest:
        print(node.RUNTIME_CLASS, end="")
