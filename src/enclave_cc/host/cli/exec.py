"""Run a command inside a running app enclave, if the image's owner allows it."""

from __future__ import annotations

import argparse
import os
import secrets
import select
import signal
import sys
from pathlib import Path

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox import control_client, directories, records
from enclave_cc.host.sandbox.control_client import ControlConnection
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.streams import InputPump, Pump, RawTerminal, get_size
from enclave_cc.wire.control import message

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="user, by name or number")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory")
    parser.add_argument("pod", metavar="POD", help="id, beginning of an id, or name")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD...")


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    places = Directories.of(configuration)
    if not arguments.command:
        raise UsageError("usage", "there is no command")
    variables = tuple(options.parse_variable(text) for text in arguments.env)
    if any(text.startswith("=") for text in variables):
        raise UsageError("usage", "a variable is written as NAME=VALUE")
    directory = directories.find(places, arguments.pod)
    if directory.parent != places.pods:
        raise UsageError("wrong-state", f"pod {foreign(arguments.pod)} does not run")
    record = directories.read_json(directory / "pod.json")
    records.require_own(record, "Use kubectl exec or crictl exec.")
    control = directory / "c" / directories.shorten(str(record.get("container", ""))) / "shared/control.sock"
    rows, columns = get_size(0 if arguments.interactive else 1) if arguments.tty else (0, 0)
    request = message.ExecRequest(
        id=secrets.token_hex(8),
        args=tuple(arguments.command),
        env=variables,
        cwd=arguments.workdir,
        user=arguments.user,
        terminal=arguments.tty,
        rows=rows,
        columns=columns,
    )
    sys.stdout.flush()
    deadline = configuration.deadlines.app_start
    with ControlConnection(control, deadline=deadline) as connection:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            stdin = 0 if arguments.interactive else null
            connection.send(request, () if arguments.tty else (stdin, 1, 2))
            try:
                reply, descriptors = connection.receive(deadline=deadline)
            except control_client.Refusal as refusal:
                raise _Refused(refusal) from refusal
        finally:
            os.close(null)
        if not isinstance(reply, message.Started):
            raise PeerError("malformed", "boot init did not say that the command runs")
        return _attend(connection, control, request, descriptors, interactive=arguments.interactive)


def _attend(
    connection: ControlConnection, control: Path, request: message.ExecRequest, descriptors: list[int], *, interactive: bool
) -> int:
    """Forwards input and signals until the command ended; its exit code."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*_FORWARDED, signal.SIGWINCH):
        signal.signal(number, lambda *_: None)
    output = feed = None
    screen = 0 if interactive else 1
    raw = RawTerminal(screen, keys=interactive) if request.terminal else None
    try:
        if raw is not None:
            raw.__enter__()
        if descriptors:
            output = Pump(os.dup(descriptors[0]), 1)
            output.start()
            if interactive:
                feed = InputPump(0, descriptors[0])
                feed.start()
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(reader, select.POLLIN)
        while True:
            ready = [number for number, _ in poll.poll()]
            if reader in ready:
                for caught in os.read(reader, 64):
                    _forward(control, request, caught, screen)
            if connection.fileno() in ready:
                reply, _ = connection.receive(deadline=10.0)
                if isinstance(reply, message.Exited):
                    return reply.exit_code
    finally:
        if feed is not None:
            feed.stop()
        for descriptor in descriptors:
            os.close(descriptor)
        if output is not None:
            output.join(10.0)
        if raw is not None:
            raw.__exit__()


def _forward(control: Path, request: message.ExecRequest, number: int, screen: int) -> None:
    ask: message.Request
    if number == signal.SIGWINCH:
        if not request.terminal:
            return
        ask = message.ResizeRequest(*get_size(screen), target=request.id)
    else:
        ask = message.SignalRequest(number, target=request.id)
    try:
        control_client.ask(control, ask, deadline=10.0)
    except PeerError as error:
        print(f"warning: {error}", file=sys.stderr)


class _Refused(PeerError):
    """Boot init's refusal, with the exit code that belongs to it."""

    def __init__(self, refusal: control_client.Refusal) -> None:
        super().__init__(refusal.code, refusal.what, refusal.fix)
        self.exit_code = refusal.exit_code

    @property
    def exit(self) -> int:
        return self.exit_code
