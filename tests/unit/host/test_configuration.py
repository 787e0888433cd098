from __future__ import annotations

from pathlib import Path

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import configuration


def test_defaults_refuse_to_run_anything() -> None:
    parsed = configuration.parse({}, "x.toml")
    assert parsed.tee == "refuse"
    assert parsed.network.default == "host"
    assert parsed.agent_bundle == Path("/var/lib/enclave-cc/bundles/agent")


def test_bundles_follow_the_state_directory() -> None:
    parsed = configuration.parse({"paths": {"state": "/srv/e"}}, "x.toml")
    assert parsed.app_bundle == Path("/srv/e/bundles/app")


def test_everything_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[paths]\nstate = "/s"\nrun = "/r"\n[bundles]\nagent = "/a"\napp = "/b"\n[platform]\ntee = "simulated"\n'
        '[kbs]\nurl = "https://k"\ncertificate = "/k.pem"\n[registry]\ninsecure = ["h:1"]\nca = "/ca.pem"\n'
        '[runtime]\nrunc = "/usr/bin/runc"\n[deadlines]\npull = 7200\nstop = 1.5\n[limits]\nlog_bytes = 5\n'
        '[network]\ndefault = "pod"\nsubnet = "10.1.0.0/16"\n'
    )
    parsed = configuration.load(str(file))
    assert (parsed.state, parsed.run, parsed.tee, parsed.runc) == (Path("/s"), Path("/r"), "simulated", "/usr/bin/runc")
    assert (parsed.kbs_url, parsed.kbs_certificate, parsed.registry_insecure) == ("https://k", Path("/k.pem"), ("h:1",))
    assert (parsed.deadlines.pull, parsed.deadlines.stop, parsed.limits.log_bytes) == (7200, 1.5, 5)
    assert (parsed.network.default, parsed.network.subnet) == ("pod", "10.1.0.0/16")


@pytest.mark.parametrize(
    "document",
    [
        {"platfrom": {"tee": "simulated"}},
        {"platform": {"te": "simulated"}},
        {"platform": "simulated"},
        {"platform": {"tee": 1}},
        {"paths": {"run": "relative"}},
        {"paths": {"run": "/" + "x" * 90}},
        {"registry": {"insecure": "host"}},
        {"deadlines": {"pull": 0}},
        {"deadlines": {"pull": True}},
        {"deadlines": {"pull": float("inf")}},
        {"limits": {"processes": -1}},
        {"network": {"default": "bridge"}},
        {"network": {"subnet": "10.0.0.1/8"}},
        {"network": {"bridge": "a-name-that-is-too-long"}},
        {"network": {"bridge": "a/b"}},
        {"network": {"bridge": 3}},
        {"network": {"subnet": 3}},
        {"platform": {"tee": "sgx9"}},
        {"kbs": {"url": "http://k"}},
    ],
)
def test_what_is_not_understood_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        configuration.parse(document, "x.toml")
    assert caught.value.code == "bad-config"
    assert caught.value.what.startswith("x.toml: ")  # the advice is to correct "the file named in the message"


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("[paths\n")
    with pytest.raises(UsageError, match="c:"):
        configuration.load(str(tmp_path / "c"))


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").write_text('[platform]\ntee = "simulated"\n')
    monkeypatch.setenv("ENCLAVE_CC_CONFIG", str(tmp_path / "c"))
    assert configuration.load().tee == "simulated"
    assert configuration.load(str(tmp_path / "c")).source == str(tmp_path / "c")
