"""Image, wishes of the host, owner's policy: docker's semantics, and each door closed by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.launch.combination import DEFAULT_CAPABILITIES, DEFAULT_PATH, combine
from enclave_cc.wire.launch.limits import Rlimit
from enclave_cc.wire.launch.mounts import Tmpfs, Volume
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.launch.policy import LaunchPolicy
from enclave_cc.wire.launch.statement import LaunchStatement

NAME = "r.example:5000/team/app"


@dataclass(frozen=True)
class Image:
    entrypoint: tuple[str, ...] = ("/entry", "--flag")
    cmd: tuple[str, ...] = ("serve",)
    env: tuple[str, ...] = ("COLOUR=blue", "EMPTY=")
    working_dir: str = "/srv"
    user: str = "app:audio"
    volumes: tuple[str, ...] = ("/data", "/cache/")
    stop_signal: str = ""


def launch(image: Image | None = None, *words: str, **wishes: Any) -> LaunchStatement:
    return combine(
        image or Image(),
        Overrides(**wishes),
        LaunchPolicy().with_image(NAME, words),
        name=NAME,
        image=NAME + ":1",
        manifest_digest="sha256:" + "0" * 64,
        container_id="c1",
    )


def denied(*words: str, image: Image | None = None, **wishes: Any) -> PeerError:
    with pytest.raises(PeerError) as caught:
        launch(image, *words, **wishes)
    assert caught.value.code == "launch-denied"
    return caught.value


def test_the_image_alone() -> None:
    statement = launch()
    assert statement.args == ("/entry", "--flag", "serve")
    assert statement.env == (f"PATH={DEFAULT_PATH}", "COLOUR=blue", "EMPTY=")
    assert (statement.cwd, statement.user, statement.stop_signal) == ("/srv", "app:audio", 15)
    assert statement.capabilities == DEFAULT_CAPABILITIES
    assert len(DEFAULT_CAPABILITIES) == 14
    assert not (
        statement.allow_exec or statement.stdin or statement.terminal or statement.no_new_privileges or statement.read_only_root
    )
    assert statement.volumes == statement.scratch == statement.files == statement.groups == statement.rlimits == ()


def test_defaults_of_an_image_that_says_little() -> None:
    statement = launch(Image(entrypoint=(), cmd=("/bin/sh",), env=(), working_dir="", user="", volumes=()))
    assert (statement.args, statement.cwd, statement.user) == (("/bin/sh",), "/", "0")
    assert statement.env == (f"PATH={DEFAULT_PATH}",)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"args": ("sh", "-c", "id")}, ("/entry", "--flag", "sh", "-c", "id")),
        ({"args": ()}, ("/entry", "--flag")),
        ({"entrypoint": ("/bin/sh",)}, ("/bin/sh",)),
        ({"entrypoint": ("/bin/sh",), "args": ("-c", "id")}, ("/bin/sh", "-c", "id")),
        ({"entrypoint": (), "args": ("/bin/id",)}, ("/bin/id",)),
    ],
)
def test_the_command_as_docker_combines_it(wishes: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert launch(None, "command", **wishes).args == expected
    error = denied(**wishes)
    assert "command" in error.what
    assert "--allow command" in error.fix
    assert NAME in error.fix


def test_a_wish_that_changes_nothing_needs_no_permission() -> None:
    same = launch(args=("serve",), env=("COLOUR=blue",), cwd="/srv", user="app:audio")
    assert same == launch()
    assert launch(entrypoint=("/entry", "--flag", "serve")) == launch()


def test_variables() -> None:
    merged = launch(None, "env", env=("COLOUR=red", "NEW=a=b", "PATH=/x")).env
    assert merged == ("PATH=/x", "COLOUR=red", "EMPTY=", "NEW=a=b")
    assert "COLOUR" in denied(env=("COLOUR=red",)).what
    assert "LD_PRELOAD" in denied("env:COLOUR", env=("COLOUR=red", "LD_PRELOAD=/spy.so")).what
    assert launch(None, "env:COLOUR", env=("COLOUR=red",)).env[1] == "COLOUR=red"
    assert "SECRET-VALUE" not in str(denied(env=("A=SECRET-VALUE",)))


def test_standard_input_needs_its_word() -> None:
    """An image whose command is a shell does what it reads: a terminal or a pipe replaces the command."""
    assert not launch().stdin
    for wish in ({"stdin": True}, {"terminal": True}):
        assert launch(None, "stdin", **wish).stdin
        assert "standard input" in denied("env", "exec", "user", "volumes", "workdir", **wish).what


def test_a_terminal_and_a_host_name_show_in_the_environment() -> None:
    statement = launch(None, "stdin", terminal=True, hostname="pod-1")
    assert statement.env == (f"PATH={DEFAULT_PATH}", "TERM=xterm", "HOSTNAME=pod-1", "COLOUR=blue", "EMPTY=")
    assert (statement.terminal, statement.hostname) == (True, "pod-1")
    assert "TERM=dumb" in launch(Image(env=("TERM=dumb",)), "stdin", terminal=True).env


def test_capabilities() -> None:
    assert launch().capabilities == DEFAULT_CAPABILITIES
    assert launch(capabilities=()).capabilities == ()
    assert launch(capabilities=("CAP_CHOWN",)).capabilities == ("CAP_CHOWN",)  # fewer need no permission
    assert "CAP_SYS_ADMIN" in denied("capabilities:CAP_NET_ADMIN", capabilities=("CAP_NET_ADMIN", "CAP_SYS_ADMIN")).what
    assert launch(None, "capabilities:CAP_NET_ADMIN", capabilities=("CAP_NET_ADMIN",)).capabilities == ("CAP_NET_ADMIN",)
    assert launch(None, "capabilities", capabilities=("CAP_SYS_ADMIN",)).capabilities == ("CAP_SYS_ADMIN",)


def test_work_directory_and_user() -> None:
    assert launch(None, "workdir", cwd="/tmp").cwd == "/tmp"
    assert "working directory" in denied("user", cwd="/tmp").what
    assert launch(None, "user", user="0", groups=("audio",)).user == "0"
    assert launch(None, "user", groups=("audio",)).user == "app:audio"
    assert "user" in denied("workdir", user="root").what
    assert "user" in denied(groups=("docker",)).what


@pytest.mark.parametrize(("path", "expected"), [("srv", "/srv"), ("/a//b/./c/../d/", "/a/b/d"), ("/..", "/"), ("", "/")])
def test_an_images_own_work_directory_in_its_shortest_form(path: str, expected: str) -> None:
    assert launch(Image(working_dir=path)).cwd == expected


def test_volumes() -> None:
    data, elsewhere = Volume("v0", "/data"), Volume("v1", "/bin", read_only=True)
    assert launch(None, "volumes", volumes=(data, elsewhere)).volumes == (data, elsewhere)
    assert launch(None, "volumes:/data", volumes=(data,)).volumes == (data,)
    error = denied("volumes:/data", volumes=(data, elsewhere))
    assert "/bin" in error.what
    assert "--allow volumes" in error.fix


def test_volumes_of_the_image_stay_writable_under_a_read_only_root() -> None:
    assert launch(read_only_root=True).scratch == ("/cache", "/data")
    covered = launch(None, "volumes", read_only_root=True, volumes=(Volume("v", "/data"),))
    assert covered.scratch == ("/cache",)


def test_what_only_takes_power_away_is_always_allowed() -> None:
    statement = launch(read_only_root=True, no_new_privileges=True, upper_size=1 << 20, files=("hosts", "resolv.conf"))
    assert (statement.read_only_root, statement.no_new_privileges, statement.upper_size) == (True, True, 1 << 20)
    assert statement.files == ("hosts", "resolv.conf")


def test_exec_is_the_owners_word_only() -> None:
    assert launch(None, "exec").allow_exec
    assert not launch(None, "command", "env", "volumes", "user", "workdir").allow_exec


def test_another_images_permissions_do_not_count() -> None:
    policy = LaunchPolicy().with_image("r.example:5000/team/other", ["command"])
    with pytest.raises(PeerError) as caught:
        combine(
            Image(), Overrides(args=("x",)), policy, name=NAME, image=NAME, manifest_digest="sha256:" + "0" * 64, container_id="c"
        )
    assert caught.value.code == "launch-denied"


@pytest.mark.parametrize(
    ("text", "number"), [("", 15), ("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGKILL", 9)]
)
def test_stop_signals(text: str, number: int) -> None:
    assert launch(Image(stop_signal=text)).stop_signal == number


@pytest.mark.parametrize("text", ["SIGNOPE", "0", "65", "SIGTERM+1", "SIGRTMAX+9", "SIG_DFL", "ITIMER_REAL", "SIGRTMIN+x"])
def test_stop_signals_that_are_none(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        launch(Image(stop_signal=text))
    assert caught.value.code == "launch-failed"


def test_an_image_without_a_command() -> None:
    for image in (Image(entrypoint=(), cmd=()), Image(entrypoint=("",), cmd=())):
        with pytest.raises(PeerError) as caught:
            launch(image)
        assert caught.value.code == "launch-failed"


def test_the_real_image_configuration_fits() -> None:
    from enclave_cc.wire.oci.config import ImageConfig

    config = ImageConfig.parse(
        b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},'
        b'"config":{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=b"],"WorkingDir":"/w","User":"u","Volumes":{"/v":{}},"StopSignal":"SIGINT"}}'
    )
    statement = combine(
        config, Overrides(), LaunchPolicy(), name=NAME, image=NAME, manifest_digest="sha256:" + "0" * 64, container_id="c"
    )
    assert (statement.args, statement.env[1], statement.cwd, statement.user, statement.stop_signal) == (
        ("/e", "c"),
        "A=b",
        "/w",
        "u",
        2,
    )


def test_a_termination_log_needs_no_permission() -> None:
    log = Volume("v0", "/dev/termination-log")
    assert launch(None, volumes=(log,)).volumes == (log,)
    assert "volumes" in denied(volumes=(log, Volume("v1", "/data"))).fix


def test_a_pods_shared_memory_is_left_out_where_it_is_not_allowed() -> None:
    shared = Volume("v0", "/dev/shm")
    assert launch(None, volumes=(shared,)).volumes == ()
    assert launch(None, "volumes:/dev/shm", volumes=(shared,)).volumes == (shared,)


def test_an_empty_file_system_covers_what_the_image_has() -> None:
    place = Tmpfs("/srv/keys", 1 << 20)
    assert "volumes" in denied("volumes:/srv", tmpfs=(place,)).fix
    assert launch(None, "volumes:/srv/keys", tmpfs=(place,)).tmpfs == (place,)
    cache = Tmpfs("/cache")
    assert launch(None, "volumes", tmpfs=(cache,), read_only_root=True).scratch == ("/data",)


def test_an_ambient_capability_is_more_than_docker_gives() -> None:
    wish = {"capabilities": ("CAP_CHOWN",), "ambient": ("CAP_CHOWN",)}
    assert "CAP_CHOWN" in denied(**wish).what
    assert launch(None, "capabilities:CAP_CHOWN", **wish).ambient == ("CAP_CHOWN",)


def test_what_the_kernel_decides_anyway_needs_no_permission() -> None:
    wishes = {"rlimits": (Rlimit("RLIMIT_NOFILE", 1, 2),), "masked": ("/proc/x",), "sealed": ("/sys/y",)}
    statement = launch(None, **wishes)
    assert (statement.rlimits, statement.masked, statement.sealed) == tuple(wishes.values())
