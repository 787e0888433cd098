"""`containerd-shim-rune-v2`, as containerd calls it: `start` and `delete` in a bundle."""

from __future__ import annotations

import os
import sys

from enclave_cc.host.shim import arguments as command_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments = command_line.parse(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        return _fail(str(error))
    if arguments.switches & {"v", "version"}:
        from enclave_cc import __version__

        print(f"containerd-shim-rune-v2:\n  Version:  {__version__}")
        return 0
    if "info" in arguments.switches:
        from enclave_cc.host.shim import information

        os.write(1, information.describe())  # what standard input says of the runtime's options changes nothing
        return 0
    if arguments.verb == "fork-server":
        return _run_fork_server()
    if not arguments.namespace or not arguments.id:
        return _fail("-namespace and -id are needed")
    try:
        if arguments.verb == "start":
            from enclave_cc.host.shim import bootstrap

            bootstrap.start(arguments, _serve)
            return 0
        if arguments.verb == "delete":
            return _delete(arguments)
    except (OSError, ValueError) as error:
        return _fail(f"{type(error).__name__}: {error}")
    return _fail(f"there is no verb {arguments.verb!r}")


def _serve(*words: object) -> None:
    from enclave_cc.host.shim.server import serve

    serve(*words)  # type: ignore[arg-type]


def _serve_forked(words: Sequence[str], descriptors: Sequence[int]) -> None:
    from enclave_cc.host.shim import surroundings

    namespace, address, identifier, group, path = words
    (listener,) = descriptors
    surroundings.show_as([sys.argv[0], "-namespace", namespace, "-id", identifier, "-address", address])
    _serve(command_line.Arguments("start", namespace, address, identifier), group, listener, path)


def _serve_cpu(words: Sequence[str], descriptors: Sequence[int]) -> None:
    from enclave_cc.host.shim import cpu_process

    cpu_process.serve(words, descriptors)


def _run_fork_server() -> int:
    from enclave_cc.host.shim import fork_server

    try:
        fork_server.run({"shim": _serve_forked, "cpu": _serve_cpu, "ping": lambda *_: None})
    except OSError as error:
        return _fail(f"the fork server: {error}")
    return 0


def _delete(arguments: command_line.Arguments) -> int:
    from enclave_cc.errors import EnclaveCcError
    from enclave_cc.host.shim import cleanup

    try:
        os.write(1, cleanup.delete(arguments))
    except EnclaveCcError as error:
        return _fail(str(error))
    return 0


def _fail(text: str) -> int:
    print(f"containerd-shim-rune-v2: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
