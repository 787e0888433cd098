"""The shim's life: from the fork of `start` to containerd's Shutdown."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.sandbox import configuration as configurations
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.runc import become_subreaper
from enclave_cc.host.shim.arguments import Arguments
from enclave_cc.host.shim.events import Publisher
from enclave_cc.host.shim.log import Log
from enclave_cc.host.shim.reaper import Reaper
from enclave_cc.host.shim.sandbox import Sandbox
from enclave_cc.host.shim.task_service import TaskService
from enclave_cc.transport.ttrpc_server import Server

_MAX_CALLS = 1024  # containerd waits for each task and exec in a call of its own
_LOOK = 5.0


def serve(arguments: Arguments, group: str, listener: int, path: str) -> None:
    """Answers containerd until it says Shutdown, then takes down what is left of the pod."""
    log = Log(Path("log"))
    try:
        bundle = Path.cwd()
        os.chdir("/")  # the bundle is containerd's to remove
        _serve(arguments, group, socket.socket(fileno=listener), path, log, bundle)
    except Exception as error:  # noqa: BLE001 - the last place where it can be told
        log.write("error", f"the shim ends: {type(error).__name__}: {error}")
    finally:
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108


def _wait(service: TaskService, sandbox: Sandbox, bundle: Path) -> None:
    """Until Shutdown. Until the first Create also looks for the bundle: a containerd that is killed while it starts us, or
    gives up, takes that away and says nothing.
    """
    while sandbox.is_empty():
        if service.stopping.wait(_LOOK) or not (bundle / "config.json").exists():
            return
    service.stopping.wait()


def _serve(arguments: Arguments, group: str, listener: socket.socket, path: str, log: Log, bundle: Path) -> None:
    become_subreaper()
    failure = None
    configuration = Configuration()
    try:
        configuration = configurations.load()
    except EnclaveCcError as error:
        log.write("error", str(error))
        failure = error
    address, patience = os.environ.get("TTRPC_ADDRESS", ""), configuration.deadlines.event
    publisher = Publisher(address, arguments.namespace, log, patience=patience)
    reaper = Reaper(log)
    reaper.start()
    sandbox = Sandbox(configuration, arguments.namespace, group, publisher, reaper, log)
    service = TaskService(sandbox)
    services = {name: dict(methods) for name, methods in service.services().items()}

    def refuse(_: bytes) -> NoReturn:
        assert failure is not None  # noqa: S101 - else it is not installed
        raise failure

    if failure is not None:
        for methods in services.values():
            methods["Create"] = refuse
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stopping.set())
    server = Server(path, services, max_calls=_MAX_CALLS, whole_errors=False, log=lambda line: log.write("error", line))
    server.start(listener)
    _wait(service, sandbox, bundle)
    server.drain(configuration.deadlines.end)  # the answer to Shutdown is under way
    try:
        sandbox.close()
    except EnclaveCcError as error:
        log.write("error", f"the pod was not taken down whole: {error}")
    publisher.close(configuration.deadlines.end)
    server.close()
