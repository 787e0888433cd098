"""The agent enclave: `python -m enclave_cc.enclave.agent`. Wires the parts and chooses their implementations.

It listens at once and makes everything else meanwhile (`startup`). It ends on SIGTERM, SIGINT or Shutdown.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from typing import TYPE_CHECKING

from enclave_cc.enclave.agent import log, settings
from enclave_cc.enclave.agent.service import AgentService
from enclave_cc.enclave.agent.startup import Startup
from enclave_cc.errors import EnclaveCcError
from enclave_cc.transport.ttrpc_server import Server

if TYPE_CHECKING:
    from enclave_cc.enclave.agent.pod import Pod

_PR_SET_DUMPABLE = 4
# How long calls in flight may take to be answered once the agent is told to end.
_DRAIN = 2.0


def main() -> int:
    """The exit code of `errors.TABLE`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    threading.stack_size(1 << 20)  # the default of 8 MiB is address space that a LibOS commits
    startup = Startup(_make_pod)
    service = AgentService(startup)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: service.stopping.set())
    server = Server(settings.AGENT_SOCKET, service.services(), log=lambda line: log.write("warning", line))
    try:
        server.start()
    except EnclaveCcError as error:
        log.write("error", str(error))
        return error.exit
    startup.start()
    service.stopping.wait()
    pod = startup.finished
    if pod is not None:
        pod.containers.remove_all()  # ends the pulls
    server.drain(_DRAIN)
    server.close()
    log.write("info", "stopped")
    os._exit(0)  # threads of a pull that does not end must not keep the process


def _make_pod(startup: Startup) -> Pod:
    """Everything that calls need. Raises coded errors: "tee-refused", "measurement-changed", "bad-config" and others."""
    _forbid_tracing()
    from enclave_cc.enclave.agent import init_data
    from enclave_cc.enclave.tee.open import open_platform

    measured = settings.load_settings()
    app = settings.load_app_identity()
    platform = open_platform(measured.tee, cpu_socket=settings.CPU_SOCKET, deadline=measured.platform_deadline)
    text = settings.read_file(settings.INIT_DATA, settings.INIT_DATA_LIMIT)
    configuration = init_data.verify(text, platform.identity.config_id)

    from enclave_cc.enclave.attest.client import KbsClient

    kbs = KbsClient(configuration.kbs_url, configuration.kbs_certificate, platform, text, measured.kbs_deadline)
    startup.attest_ahead(kbs.attest)

    from pathlib import Path

    from enclave_cc.enclave.agent.pod import Pod
    from enclave_cc.enclave.rootfs.cache import NodeCache
    from enclave_cc.wire.sgx.report import KeyPolicy

    return Pod(
        platform=platform,
        resources=kbs,
        configuration=configuration,
        # By MRENCLAVE: what one build of the agent sealed, no other one opens. An upgrade pulls anew.
        cache=NodeCache(
            Path(settings.CACHE_DIRECTORY),
            platform.seal_key(KeyPolicy.MRENCLAVE, settings.CACHE_KEY_ID),
            log=lambda line: log.write("warning", line),
        ),
        app=app,
        measured=measured,
    )


def _forbid_tracing() -> None:
    """Nobody attaches to this process or reads its memory through /proc without CAP_SYS_PTRACE."""
    import ctypes  # 10 ms: not before listening

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.write("warning", "the process could not be made undumpable")


if __name__ == "__main__":
    sys.exit(main())
