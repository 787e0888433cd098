from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from enclave_cc.errors import EnclaveCcError, UsageError
from enclave_cc.host.cli import options, run


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(words)


def test_options_behind_the_image_belong_to_the_workload() -> None:
    arguments = parse("-d", "img", "sh", "-c", "x", "--name", "y")
    assert (arguments.detach, arguments.image, arguments.name) == (True, "img", "")
    assert arguments.command == ["sh", "-c", "x", "--name", "y"]


def test_nothing_asked_is_nothing_overridden() -> None:
    overrides = run.make_overrides(parse("img"), (), "host")
    assert overrides.args is None
    assert overrides.entrypoint is None
    assert (overrides.env, overrides.cwd, overrides.user, overrides.volumes) == ((), None, None, ())
    assert overrides.files == ("resolv.conf", "hosts", "hostname")


def test_without_a_network_there_is_no_resolver() -> None:
    assert "resolv.conf" not in run.make_overrides(parse("img"), (), "none").files


def test_a_variable_without_a_value_is_taken_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "a=b")
    monkeypatch.delenv("ABSENT", raising=False)
    assert run.make_overrides(parse("-e", "TAKEN", "-e", "X=", "img"), (), "host").env == ("TAKEN=a=b", "X=")
    with pytest.raises(UsageError):
        run.make_overrides(parse("-e", "ABSENT", "img"), (), "host")


def test_volumes(tmp_path: Path) -> None:
    host, inside = run.parse_volume(f"{tmp_path}:/data/:ro", 3)
    assert (host.name, host.source, host.read_only) == ("v3", tmp_path.resolve(), True)
    assert (inside.name, inside.destination, inside.read_only) == ("v3", "/data", True)


@pytest.mark.parametrize(
    "text", ["", "/tmp", "rel:/x", "/tmp:rel", "/tmp:/x:bad", "/tmp:/x:ro:more", "/no/such/place:/x", "/tmp:/proc"]
)
def test_volumes_that_are_none(text: str) -> None:
    with pytest.raises(EnclaveCcError):
        run.parse_volume(text, 0)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("512b", 512), ("1k", 1024), ("96m", 96 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1 2"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        options.parse_size(text)


@pytest.mark.parametrize("words", [["--memory", "4m"], ["--pids-limit", "3"], ["--pids-limit", "-1"]])
def test_limits_that_boot_init_cannot_live_in_are_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").touch()
    with pytest.raises(UsageError) as caught:
        run.run(parse("--config", str(tmp_path / "c.toml"), *words, "h/img"))
    assert caught.value.code == "usage"
