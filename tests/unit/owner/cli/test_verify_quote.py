"""`enclave-cc verify quote`."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from enclave_cc.__main__ import main
from enclave_cc.owner.cli.verify_quote import decode_quote

VECTORS = Path(__file__).parents[3] / "vectors/sgx"
QUOTE, COLLATERAL = VECTORS / "phala-quote.bin", VECTORS / "phala-collateral.json"
DATA = QUOTE.read_bytes()


def verify(*words: object) -> int:
    return main(["verify", "quote", *map(str, words)])


def test_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(QUOTE, "--collateral", COLLATERAL, "--at", 1751000000) == 0
    claims = json.loads(capsys.readouterr().out)
    assert claims["mr_enclave"] == "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    assert (claims["tcb_status"], claims["simulated"], claims["debug"]) == ("ConfigurationAndSWHardeningNeeded", False, False)
    assert (claims["isv_prod_id"], claims["isv_svn"], claims["fmspc"]) == (0, 0, "00a067110000")


@pytest.mark.parametrize(
    ("quote", "collateral", "at", "code"),
    [
        ("phala-quote.bin", "phala-collateral.json", 1752919279, "collateral-refused"),
        ("trustee-debug-quote.bin", "intel-00606A000000-collateral.json", 1755648000, "debug-enclave"),
        ("phala-collateral.json", "phala-collateral.json", 1751000000, "malformed"),
        ("phala-quote.bin", "phala-quote.bin", 1751000000, "malformed"),
    ],
)
def test_coded_refusals(capsys: pytest.CaptureFixture[str], quote: str, collateral: str, at: int, code: str) -> None:
    words = (VECTORS / quote, "--collateral", VECTORS / collateral, "--at", at)
    assert verify(*words) in (11, 12)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error {code}: ")
    verify(*words, "--json")
    assert json.loads(capsys.readouterr().err)["error"]["code"] == code


def test_without_a_time_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(QUOTE, "--collateral", COLLATERAL) == 12  # expired in July 2025
    assert "collateral-refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        DATA,
        DATA.hex().encode(),
        DATA.hex().upper().encode() + b"\n",
        b"0x" + DATA.hex().encode(),
        base64.b64encode(DATA),
        base64.encodebytes(DATA),
        base64.urlsafe_b64encode(DATA).rstrip(b"="),
    ],
    ids=["raw", "hex", "HEX", "0x", "base64", "lines", "url"],
)
def test_encodings_of_a_quote(text: bytes) -> None:
    assert decode_quote(text) == DATA


@pytest.mark.parametrize("text", [b"", b"hello!", b"\xff\xfe", b"0x", b"A"])
def test_what_is_no_quote_is_left_to_the_parser(text: bytes) -> None:
    assert len(decode_quote(text)) <= len(text)


def test_a_root_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from enclave_cc.owner.verifier import roots
    from enclave_cc.wire.sgx.certification import encode_pem_certificate

    root = tmp_path / "root.pem"
    root.write_bytes(encode_pem_certificate(roots.intel_root().certificate))
    assert verify(QUOTE, "--collateral", COLLATERAL, "--at", 1751000000, "--root", root) == 0
    claims = json.loads(capsys.readouterr().out)
    assert (claims["root"], claims["simulated"]) == ("root.pem", False)


def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "big").write_bytes(bytes(1 << 20))
    for quote in (tmp_path / "none", tmp_path, tmp_path / "big"):
        assert verify(quote, "--collateral", COLLATERAL) == 2
        assert capsys.readouterr().err.startswith("error usage: ")
    assert verify(QUOTE, "--collateral", COLLATERAL, "--root", COLLATERAL) == 2
    assert capsys.readouterr().err.startswith("error bad-config: ")
    assert verify(QUOTE, "--collateral", COLLATERAL, "--at", -1) == 2
