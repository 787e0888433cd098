"""Run an image in an app enclave."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.host.cli import options
from enclave_cc.host.sandbox.configuration import NETWORKS, Configuration
from enclave_cc.host.sandbox.pod import AppOptions, Pod, PodOptions
from enclave_cc.host.sandbox.reconcile import reconcile
from enclave_cc.host.sandbox.spec import Resources, Volume
from enclave_cc.wire.launch import mounts
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.oci.reference import Reference

LEAST_MEMORY = 32 << 20
LEAST_PROCESSES = 16
SIMULATED = "platform: simulated SGX (no protection against root)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_common(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="return when the workload runs; print the pod's id")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the workload a terminal")
    parser.add_argument("--name", default="", help="name of the pod")
    parser.add_argument("--rm", action="store_true", help="keep no record and no log of the pod")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("-v", "--volume", action="append", default=[], metavar="SRC:DST[:ro]", help="mount a host path")
    parser.add_argument("--memory", default="", metavar="SIZE", help="limit, as 512m; hitting it ends the container")
    parser.add_argument("--cpus", type=float, default=0.0, metavar="N", help="limit, as 1.5")
    parser.add_argument("--pids-limit", type=int, default=None, metavar="N", help="limit of processes")
    parser.add_argument("--network", choices=NETWORKS, help="the node's, none, or one of the pod's own")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="user, by name or number")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="replaces the image's entrypoint")
    parser.add_argument("--hostname", default="", help="host name inside")
    parser.add_argument("--read-only", action="store_true", help="no writable layer over the image")
    parser.add_argument("--timings", type=Path, metavar="FILE", help="write when each stage of the start was reached, as JSON")
    parser.add_argument("image", metavar="IMAGE", help="HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]")
    command = parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD...", help="replaces the image's command")
    command.required = False  # argparse would name it as missing beside IMAGE


def run(arguments: argparse.Namespace) -> int:
    configuration = options.load(arguments)
    # Everything that can be wrong with the arguments is said before anything is started.
    pod_options = PodOptions(
        name=arguments.name,
        network=arguments.network or configuration.network.default,
        hostname=arguments.hostname,
        remove=arguments.rm,
    )
    Reference.parse(arguments.image)
    try:
        volumes = [parse_volume(text, number) for number, text in enumerate(arguments.volume)]
        overrides = make_overrides(arguments, tuple(volume for _, volume in volumes), pod_options.network)
    except PeerError as error:  # "malformed", which here is the user's own word
        raise UsageError("usage", error.what) from error
    resources = Resources(
        memory=_check_memory(options.parse_size(arguments.memory) if arguments.memory else 0),
        cpus=_check_cpus(arguments.cpus),
        processes=configuration.limits.processes if arguments.pids_limit is None else _check_processes(arguments.pids_limit),
    )
    if arguments.timings is not None:
        arguments.timings.touch()
    if arguments.detach and arguments.interactive:
        raise UsageError("usage", "-d and -i exclude each other")

    def supervise(on_running: Callable[[str], None] | None) -> int:
        return _supervise(arguments, configuration, pod_options, overrides, resources, [host for host, _ in volumes], on_running)

    if arguments.detach:
        from enclave_cc.host.cli import detach

        return detach.run_detached(supervise, deadline=configuration.deadlines.remove)
    return supervise(None)


def _supervise(
    arguments: argparse.Namespace,
    configuration: Configuration,
    pod_options: PodOptions,
    overrides: Overrides,
    resources: Resources,
    volumes: list[Volume],
    on_running: Callable[[str], None] | None,
) -> int:
    from enclave_cc.host.cli.progress import Progress
    from enclave_cc.host.cli.timings import Timings
    from enclave_cc.host.sandbox.supervisor import Streams, Supervisor
    from enclave_cc.record import replace

    timings = Timings() if arguments.timings is not None else None
    if timings is not None:
        timings.reach("command")
    for error in reconcile(configuration):
        print(f"warning: {error}", file=sys.stderr)
    pod = Pod.create(configuration, pod_options)
    if configuration.tee == "simulated" and not arguments.quiet:
        print(SIMULATED, file=sys.stderr, flush=True)
    hostname = pod_options.hostname or pod.id[:12]
    app = AppOptions(
        container=pod.id,
        image=arguments.image,
        hostname=hostname,
        volumes=tuple(volumes),
        resources=resources,
        description={"command": arguments.command, "terminal": arguments.tty},
    )
    detached = arguments.detach
    streams = Streams(
        stdin=0 if arguments.interactive and not detached else None,
        stdout=None if detached else 1,
        stderr=None if detached else 2,
        terminal=arguments.tty,
    )
    on_begin = None if on_running is None else lambda: on_running(pod.id)
    progress = Progress(quiet=arguments.quiet, on_running=on_begin, timings=timings)
    try:
        outcome = Supervisor(pod, app, replace(overrides, hostname=hostname).encode(), streams, progress).run()
    finally:
        progress.close()
        if timings is not None:
            timings.write(arguments.timings)
    if outcome.error is not None and not detached:
        console.print_error(outcome.error, as_json=arguments.json)
    return outcome.exit_code


def make_overrides(arguments: argparse.Namespace, volumes: tuple[mounts.Volume, ...], network: str) -> Overrides:
    """What the user wants otherwise than the image says. Raises `UsageError`, `PeerError("malformed")`."""
    files = ("hosts", "hostname") if network == "none" else ("resolv.conf", "hosts", "hostname")
    return Overrides(
        args=tuple(arguments.command) or None,
        entrypoint=(arguments.entrypoint,) if arguments.entrypoint is not None else None,
        env=tuple(options.parse_variable(text) for text in arguments.env),
        cwd=arguments.workdir,
        user=arguments.user,
        hostname=arguments.hostname,
        volumes=volumes,
        files=files,
        stdin=arguments.interactive,
        terminal=arguments.tty,
        read_only_root=arguments.read_only,
    )


def parse_volume(text: str, number: int) -> tuple[Volume, mounts.Volume]:
    """The host's and the enclave's side of `SRC:DST[:ro|rw]`. Raises `UsageError`."""
    source, _, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not source.startswith("/") or not destination.startswith("/") or mode not in ("", "ro", "rw"):
        raise UsageError("usage", f"{foreign(text)!r} is no volume", "Write it as /SOURCE:/DESTINATION[:ro].")
    if not os.path.exists(source):  # noqa: PTH110 - a path as the user wrote it
        raise UsageError("not-found", f"the volume's source {foreign(source)} does not exist", "Make it first.")
    name, read_only = f"v{number}", mode == "ro"
    return Volume(name, Path(source).resolve(), read_only), mounts.Volume(name, destination.rstrip("/") or "/", read_only)


def _check_memory(size: int) -> int:
    if 0 < size < LEAST_MEMORY:
        raise UsageError(
            "usage", f"--memory is below {LEAST_MEMORY >> 20}m, which boot init alone takes", "Give it more, or 0 for no limit."
        )
    return size


def _check_processes(count: int) -> int:
    if count != 0 and count < LEAST_PROCESSES:
        raise UsageError(
            "usage", f"--pids-limit is below {LEAST_PROCESSES}, which boot init alone takes", "Give it more, or 0 for no limit."
        )
    return count


def _check_cpus(cpus: float) -> float:
    if not 0 <= cpus <= 4096:
        raise UsageError("usage", "--cpus is a number of CPUs")
    return cpus
