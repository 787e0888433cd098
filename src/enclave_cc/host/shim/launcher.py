"""The program that containerd finds on its PATH: starts the shim without what Python's `site` costs (20 ms and more).

An installer writes it; pip's own console script of the same name does the same, slower.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import enclave_cc

NAME = "containerd-shim-rune-v2"


def make_launcher(environment: dict[str, str] | None = None) -> str:
    """Its text; `environment` is set where the caller's has no such variable (ENCLAVE_CC_CONFIG, say)."""
    lines = [f"#!{sys.executable} -IS", f'"""{NAME}, made by enclave-cc for this installation."""', "import os", "import sys", ""]
    lines += [f"sys.path += {_list_paths()!r}"]
    lines += [f"os.environ.setdefault({name!r}, {value!r})" for name, value in sorted((environment or {}).items())]
    lines += ["from enclave_cc.host.shim.__main__ import main", "", "sys.exit(main())", ""]
    return "\n".join(lines)


def fork_server_command() -> list[str]:
    """What runs the fork server of this installation (`fork_server.py`)."""
    program = f"import sys; sys.path += {_list_paths()!r}; sys.argv[0] = {NAME!r}"
    program += "; from enclave_cc.host.shim.__main__ import main; sys.exit(main())"
    return [sys.executable, "-IS", "-c", f"{program:400}", "fork-server"]  # room for what a fork is shown as


def _list_paths() -> list[str]:
    """Where this installation's modules lie."""
    package = str(Path(enclave_cc.__file__).resolve().parent.parent)
    return list(dict.fromkeys([package, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
