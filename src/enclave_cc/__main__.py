"""`enclave-cc`: finds the command's module, and turns errors into messages and exit codes.

Owner commands live in `owner/cli`, node commands in `host/cli`; only the one asked for is imported, because
`run` must start at once, and because a node has no owner extras installed. Each command module has
`add_arguments(parser)` and `run(arguments) -> int`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from enclave_cc import __version__, console
from enclave_cc.errors import EnclaveCcError
from enclave_cc.record import record


@record
class Command:
    """Words on the command line, the module that carries them out, and one line of help."""

    words: str
    module: str
    help: str


_HOST, _OWNER = "enclave_cc.host.cli.", "enclave_cc.owner.cli."
COMMANDS: tuple[Command, ...] = (
    # owner
    Command("image publish", _OWNER + "image_publish", "encrypt, sign and push an image, and register its key"),
    Command("image encrypt", _OWNER + "image_encrypt", "encrypt the layers of an image"),
    Command("image sign", _OWNER + "image_sign", "sign an image in a registry"),
    Command("image push", _OWNER + "image_push", "push an image to a registry"),
    Command("image inspect", _OWNER + "image_inspect", "show an image: layers, encryption, signatures"),
    Command("kbs init", _OWNER + "kbs_init", "make a KBS directory: TLS identity, token and admin keys"),
    Command("kbs serve", _OWNER + "kbs_serve", "serve the key broker"),
    Command("kbs root", _OWNER + "kbs_root", "name the platform roots that the KBS trusts"),
    Command("resource", _OWNER + "resource", "set, get, list and remove resources in the KBS"),
    Command("policy", _OWNER + "policy", "set, get, lint and test policies"),
    Command("refvals", _OWNER + "refvals", "add, list and remove reference values"),
    Command("explain", _OWNER + "explain", "tell why the KBS denied something, by the id of the denial"),
    Command("bundle build", _OWNER + "bundle_build", "build the agent or app bundle; prints reference values"),
    Command("verify quote", _OWNER + "verify_quote", "verify an SGX quote offline; prints its claims"),
    # node
    Command("run", _HOST + "run", "run an image in an app enclave"),
    Command("ps", _HOST + "ps", "list pods"),
    Command("logs", _HOST + "logs", "print a pod's output, or its agent's log"),
    Command("exec", _HOST + "exec", "run a command inside a running app enclave"),
    Command("stop", _HOST + "stop", "stop a pod"),
    Command("rm", _HOST + "rm", "remove a pod and everything it left"),
    Command("image ls", _HOST + "image_ls", "list what the node's sealed cache holds"),
    Command("image rm", _HOST + "image_rm", "remove an image from the node's sealed cache"),
    Command("image gc", _HOST + "image_gc", "shrink the node's sealed cache"),
    Command("doctor", _HOST + "doctor", "tell what this machine lacks, and how to get it"),
    Command("simulator", _HOST + "simulator", "make and show the simulated SGX platform (development only)"),
)


def find_command(argv: Sequence[str]) -> tuple[Command, list[str]] | None:
    """The longest command whose words open `argv`, with the arguments behind it."""
    if argv[:1] == ["kbs"] and argv[1:2] and argv[1] in {"resource", "policy", "refvals"}:
        argv = argv[1:]  # `kbs resource ...` reads as `resource ...`
    for command in sorted(COMMANDS, key=lambda c: -len(c.words)):
        words = command.words.split()
        if list(argv[: len(words)]) == words:
            return command, list(argv[len(words) :])
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code of `errors.TABLE`, or what the command returns."""
    argv = sys.argv[1:] if argv is None else argv
    found = find_command(argv)
    if found is None:
        return _print_overview(argv)
    command, rest = found
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        print(
            f"error missing-tool: `enclave-cc {command.words}` needs the Python package {error.name}. "
            f"Install enclave-cc with the extra of its side: pip install 'enclave-cc[owner]' or 'enclave-cc[node]'.",
            file=sys.stderr,
        )
        return 4
    parser = argparse.ArgumentParser(prog=f"enclave-cc {command.words}", description=module.__doc__)
    module.add_arguments(parser)
    arguments = parser.parse_args(rest)
    try:
        return int(module.run(arguments))
    except EnclaveCcError as error:
        console.print_error(error, as_json=bool(getattr(arguments, "json", False)))
        return error.exit
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141  # as if SIGPIPE had ended us; the reader is gone


def _print_overview(argv: Sequence[str]) -> int:
    if list(argv) == ["--version"]:
        print(f"enclave-cc {__version__}")
        return 0
    asked = list(argv) in (["--help"], ["-h"], ["help"])
    out = sys.stdout if asked else sys.stderr
    if argv and not asked:
        close = [c for c in COMMANDS if c.words.split()[0] == argv[0]]
        shown = close or COMMANDS
        print(f"error usage: there is no command {' '.join(argv[:2])!r}. The commands are:", file=out)
    else:
        shown = COMMANDS
        print("usage: enclave-cc COMMAND [ARGUMENTS]; enclave-cc COMMAND --help\n", file=out)
    for command in shown:
        print(f"  {command.words:<16} {command.help}", file=out)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
