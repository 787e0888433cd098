"""`enclave-cc`: finds the command's module, and turns errors into messages and exit codes.

Owner commands live in `owner/cli`, node commands in `host/cli`; only the one asked for is imported, because
`run` must start at once, and because a node has no owner extras installed. Each command module has
`add_arguments(parser)` and `run(arguments) -> int`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from enclave_cc import __version__, console
from enclave_cc.errors import OWNER_FIXES, TABLE, EnclaveCcError, EnvironmentFault, UsageError, explain_os_error
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
    Command("kbs page", _OWNER + "kbs_page", "print a link to the owner's page of the KBS"),
    Command("kbs token", _OWNER + "kbs_token", "rotate the key that signs attestation tokens"),
    Command("kbs migrate", _OWNER + "kbs_migrate", "bring the KBS's database to this program's schema"),
    Command("kbs root", _OWNER + "kbs_root", "name the platform roots that the KBS trusts"),
    Command("kbs audit", _OWNER + "kbs_audit", "verify, export and prove the KBS's audit log"),
    Command("audit", _OWNER + "kbs_audit", "the same"),
    Command("kbs rekey", _OWNER + "kbs_rekey", "change the key that resources are sealed under"),
    Command("resource", _OWNER + "resource", "set, get, list and remove resources in the KBS"),
    Command("policy", _OWNER + "policy", "set, activate, compare and read policies"),
    Command("policy lint", _OWNER + "policy_lint", "tell what is probably wrong with policies"),
    Command("policy replay", _OWNER + "policy_replay", "tell what policies, values or a date would change before they do"),
    Command("policy test", _OWNER + "policy_test", "run tests of policies"),
    Command("refvals", _OWNER + "refvals", "add, list, retire and remove reference values"),
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
    Command("image ls", _HOST + "image_ls", "list the sealed blobs of the node's cache"),
    Command("image rm", _HOST + "image_rm", "remove sealed blobs from the node's cache"),
    Command("image gc", _HOST + "image_gc", "shrink the node's sealed cache"),
    Command("node setup", _HOST + "node_setup", "make this node's containerd know enclave-cc, or undo it"),
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


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as every other error is said."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError("usage", message, f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code of `errors.TABLE`, or what the command returns."""
    argv = sys.argv[1:] if argv is None else argv
    _open_standard_streams()
    found = find_command(argv)
    as_json = "--json" in argv  # until the arguments are known
    try:
        if found is None:
            code = _print_overview(argv)
        else:
            command, rest = found
            parser = Parser(prog=f"enclave-cc {command.words}")
            gc.disable()  # imports allocate much and free nothing
            try:
                module = _import_command(command)
                parser.description = module.__doc__
                module.add_arguments(parser)
                arguments = parser.parse_args(rest)
            finally:
                gc.enable()
            as_json = bool(getattr(arguments, "json", False))
            code = int(module.run(arguments))
        sys.stdout.flush()
    except EnclaveCcError as error:
        return _tell(error, found, as_json=as_json)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _give_up_stdout()
        return 141  # as if SIGPIPE had ended us; the reader is gone
    except OSError as error:
        _give_up_stdout()
        return _tell(explain_os_error(error), found, as_json=as_json)
    return code


def _import_command(command: Command) -> Any:
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            "missing-tool",
            f"`enclave-cc {command.words}` needs the Python package {error.name}",
            "Install enclave-cc with the extra of its side: pip install 'enclave-cc[owner]' or 'enclave-cc[node]'.",
        ) from error


def _tell(error: EnclaveCcError, found: tuple[Command, list[str]] | None, *, as_json: bool) -> int:
    """Prints an error with the advice that fits the side whose command it is; its exit code."""
    if found is not None and found[0].module.startswith(_OWNER) and error.fix == TABLE[error.code].fix:
        error.fix = OWNER_FIXES.get(error.code, error.fix)
    console.print_error(error, as_json=as_json)
    return error.exit


def _open_standard_streams() -> None:
    """Descriptors 0 to 2 that a caller closed would become those of files and sockets of ours."""
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which this one is
            setattr(sys, ("stdin", "stdout", "stderr")[number], os.fdopen(number, mode, closefd=False))


def _give_up_stdout() -> None:
    """What is still buffered has nowhere to go, and must not fail again when the interpreter ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _print_overview(argv: Sequence[str]) -> int:
    if list(argv) == ["--version"]:
        print(f"enclave-cc {__version__}")
        return 0
    asked = list(argv) in (["--help"], ["-h"], ["help"])
    out = sys.stdout if asked else sys.stderr
    close = [c for c in COMMANDS if argv and c.words.split()[0] == argv[0]]
    if asked or not argv:
        print("usage: enclave-cc COMMAND [ARGUMENTS]; enclave-cc COMMAND --help\n", file=out)
    elif close and len(argv) == 1:
        print(f"error usage: {argv[0]} needs another word. The commands are:", file=out)
    else:
        print(f"error usage: there is no command {' '.join(argv[:2])!r}. The commands are:", file=out)
    for command in close if close and not asked else COMMANDS:
        print(f"  {command.words:<16} {command.help}", file=out)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
