"""The verifier: a real quote, a simulated one, and each reason to refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.owner.verifier.quote import read_origin, verify_quote
from enclave_cc.owner.verifier.roots import intel_root
from enclave_cc.simulator.platform import Condition
from enclave_cc.wire.sgx.certification import CertificationData, encode_pem_certificate
from enclave_cc.wire.sgx.collateral import TCB_STATUSES, Collateral
from enclave_cc.wire.sgx.quote import Quote

if TYPE_CHECKING:
    from conftest import Simulated

VECTORS = Path(__file__).parents[3] / "vectors/sgx"
REAL = (VECTORS / "phala-quote.bin").read_bytes()
REAL_COLLATERAL = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())
FIRST, LAST = 1750330571, 1752919278
DEBUG = (VECTORS / "trustee-debug-quote.bin").read_bytes()
DEBUG_COLLATERAL = Collateral.parse((VECTORS / "intel-00606A000000-collateral.json").read_bytes())
DEBUG_TIME = 1755648000


def refusal(quote: bytes, collateral: Collateral, at: int) -> PeerError:
    with pytest.raises(PeerError) as caught:
        verify_quote(quote, collateral, roots=[intel_root()], at=at)
    return caught.value


# --- a real quote


@pytest.mark.parametrize("at", [FIRST, (FIRST + LAST) // 2, LAST])
def test_a_real_quote_within_its_collateral_s_validity(at: int) -> None:
    claims = verify_quote(REAL, REAL_COLLATERAL, roots=[intel_root()], at=at)
    assert claims.tcb_status == "ConfigurationAndSWHardeningNeeded"
    assert claims.advisory_ids == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims.tcb_date == "2024-03-13T00:00:00Z"
    assert claims.fmspc.hex() == "00a067110000"
    assert (claims.root, claims.simulated, claims.debug) == ("intel", False, False)
    assert claims.body.report_data == b"Hello, world!".ljust(64, b"\0")
    assert (claims.latest_issue_date, claims.earliest_expiration_date) == (FIRST, LAST)
    assert claims.platform_instance_id is None  # Processor CA


@pytest.mark.parametrize("at", [0, FIRST - 1, LAST + 1, 2 * LAST])
def test_a_real_quote_one_second_outside(at: int) -> None:
    assert refusal(REAL, REAL_COLLATERAL, at).code == "collateral-refused"


def test_upstream_s_members() -> None:
    claims = verify_quote(REAL, REAL_COLLATERAL, roots=[intel_root()], at=FIRST).to_upstream_json()
    assert claims["header"] == {
        "version": "0300",
        "att_key_type": "0200",
        "att_key_data_0": "00000000",
        "qe_svn": "0a00",
        "pce_svn": "0f00",
        "vendor_id": "939a7233f79c4ca9940a0db3957f0607",
        "user_data": "3987622ee6968a54977c8626ef47123500000000",
    }
    body = claims["body"]
    assert isinstance(body, dict)
    assert body["attributes.flags"] == "0500000000000000"
    assert body["mr_enclave"] == "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    assert {name: len(value) // 2 for name, value in body.items() if name.startswith("reserved")} == {
        "reserved1": 12,
        "reserved2": 32,
        "reserved3": 32,
        "reserved4": 42,
    }
    expected = {
        "sgx_type": "Standard",
        "platform_provider_id": "d04ec06d4e6d92dc90d0ad3cf5ee2ddf",
        "collateral_expiration_status": "0",
        "earliest_issue_date": "2018-05-21T10:45:10Z",
        "latest_issue_date": "2025-06-19T10:56:11Z",
        "earliest_expiration_date": "2025-07-19T10:01:18Z",
        "tcb_eval_num": 17,
        "pck_crl_num": 1,
        "root_ca_crl_num": 1,
        # as Trustee's own example token has it
        "root_key_id": "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993",
    }
    assert {name: claims[name] for name in expected} == expected
    assert "is_dynamic_platform" not in claims
    assert "platform_instance_id" not in claims


def test_a_real_debug_quote() -> None:
    assert refusal(DEBUG, DEBUG_COLLATERAL, DEBUG_TIME).code == "debug-enclave"


def document(name: str, member: str) -> tuple[str, bytes]:
    """The exact signed text in one of Intel's documents, and its signature."""
    text = (VECTORS / name).read_text()
    body, signature = text.split(f'{{"{member}":', 1)[1].rsplit(',"signature":"', 1)
    return body, bytes.fromhex(signature.rstrip('"}\n'))


@pytest.mark.parametrize("at", [DEBUG_TIME, FIRST, 1761696000])
@pytest.mark.parametrize("parts", [("tcb_info",), ("qe_identity",), ("tcb_info", "qe_identity")], ids=str)
def test_tdx_collateral(at: int, parts: tuple[str, ...]) -> None:
    documents = {
        "tcb_info": ("intel-tdx-tcb-info.json", "tcbInfo"),
        "qe_identity": ("intel-tdx-qe-identity.json", "enclaveIdentity"),
    }
    changes: dict[str, str | bytes] = {}
    for part in parts:
        changes[part], changes[f"{part}_signature"] = document(*documents[part])
    error = refusal(REAL, replace(REAL_COLLATERAL, **changes), at)  # type: ignore[arg-type]
    assert error.code == "collateral-refused"


def test_tdx_tcb_info_is_refused_as_tdx_s() -> None:
    text, signature = document("intel-tdx-tcb-info.json", "tcbInfo")
    collateral = replace(REAL_COLLATERAL, tcb_info=text, tcb_info_signature=signature)
    assert refusal(REAL, collateral, FIRST).what == "the TCB info is not of SGX"


def test_collateral_of_another_platform() -> None:
    error = refusal(REAL, DEBUG_COLLATERAL, DEBUG_TIME)
    assert error.code == "collateral-refused"


def test_nobody_s_root_is_trusted() -> None:
    with pytest.raises(PeerError) as caught:
        verify_quote(REAL, REAL_COLLATERAL, roots=[], at=FIRST)
    assert caught.value.code == "untrusted-root"
    assert "Intel SGX Root CA" in caught.value.what


def test_origin() -> None:
    origin = read_origin(REAL)
    assert (origin.fmspc.hex(), origin.pck_ca, origin.root) == ("00a067110000", "processor", intel_root().certificate)
    assert read_origin(DEBUG).pck_ca == "platform"


# --- a simulated platform takes the same path


def test_a_simulated_quote(simulated: Simulated) -> None:
    claims = simulated.verify()
    assert claims.body == replace(simulated.enclave.identity, report_data=b"bound".ljust(64, b"\0"))
    assert (claims.root, claims.simulated, claims.tcb_status) == ("lab", True, "UpToDate")
    assert (claims.body.isv_prod_id, claims.body.isv_svn) == (7, 9)
    platform = simulated.platform
    assert (claims.ppid, claims.fmspc, claims.platform_instance_id) == (platform.ppid, b"SIMULA", platform.platform_instance_id)
    upstream = claims.to_upstream_json()
    assert upstream["platform_instance_id"] == platform.platform_instance_id[::-1].hex()
    assert upstream["sgx_type"] == "Scalable"
    assert (upstream["is_dynamic_platform"], upstream["is_cached_keys"], upstream["is_smt_enabled"]) == (False, False, False)
    assert upstream["simulated"] is True


def test_a_simulated_root_is_not_intel_s(simulated: Simulated) -> None:
    with pytest.raises(PeerError) as caught:
        verify_quote(simulated.quote(), simulated.collateral(), roots=[intel_root()], at=FIRST)
    assert caught.value.code == "untrusted-root"
    assert "NOT Intel" in caught.value.what


def test_a_simulated_debug_enclave(simulated: Simulated) -> None:
    with pytest.raises(PeerError) as caught:
        simulated.verify(simulated.quote(simulated.debug))
    assert caught.value.code == "debug-enclave"


@pytest.mark.parametrize("status", [status for status in TCB_STATUSES if status != "Revoked"])
def test_every_other_tcb_status_is_reported(simulated: Simulated, status: str) -> None:
    claims = simulated.verify(collateral=simulated.collateral(Condition(tcb_status=status, advisory_ids=("INTEL-SA-7",))))
    assert (claims.tcb_status, claims.advisory_ids) == (status, ("INTEL-SA-7",))


@pytest.mark.parametrize(
    ("condition", "code", "why"),
    [
        (Condition(tcb_status="Revoked"), "tcb-refused", "revoked"),
        (Condition(qe_revoked=True), "tcb-refused", "revoked"),
        (Condition(pck_revoked=True), "quote-refused", "PCK certificate is revoked"),
        (Condition(platform_ca_revoked=True), "collateral-refused", "revoked"),
        (Condition(wrong_signer=True), "collateral-refused", "signature does not fit"),
        (Condition(fmspc=b"OTHERS"), "collateral-refused", "FMSPC"),
    ],
    ids=str,
)
def test_each_reason(simulated: Simulated, condition: Condition, code: str, why: str) -> None:
    with pytest.raises(PeerError, match=why) as caught:
        simulated.verify(collateral=simulated.collateral(condition))
    assert caught.value.code == code


@pytest.mark.parametrize("days", [-1, 31])
def test_collateral_from_another_time(simulated: Simulated, days: int) -> None:
    with pytest.raises(PeerError) as caught:
        simulated.verify(at=simulated.now + days * 86400)
    assert caught.value.code == "collateral-refused"


def test_collateral_of_another_simulated_platform(simulated: Simulated, other_platform: Simulated) -> None:
    with pytest.raises(PeerError, match="root") as caught:
        simulated.verify(collateral=other_platform.collateral())
    assert caught.value.code == "collateral-refused"


def test_a_platform_below_every_level(simulated: Simulated) -> None:
    newer = replace(simulated.platform, pce_svn=simulated.platform.pce_svn + 1)
    with pytest.raises(PeerError, match="below every known") as caught:
        simulated.verify(collateral=newer.collateral(simulated.now))
    assert caught.value.code == "tcb-refused"


# --- forged quotes


def test_a_quote_signed_by_an_uncertified_key(simulated: Simulated, other_platform: Simulated) -> None:
    good, foreign = Quote.parse(simulated.quote()), Quote.parse(other_platform.quote())
    forged = replace(good, attestation_key=foreign.attestation_key, body=foreign.body, signature=foreign.signature)
    with pytest.raises(PeerError) as caught:
        simulated.verify(forged.encode())
    assert caught.value.code == "quote-refused"


def test_a_quote_with_another_platform_s_pck_chain(simulated: Simulated, other_platform: Simulated) -> None:
    good, foreign = Quote.parse(simulated.quote()), Quote.parse(other_platform.quote())
    with pytest.raises(PeerError) as caught:
        simulated.verify(replace(foreign, certification=good.certification).encode())
    assert caught.value.code == "quote-refused"


def test_a_leaf_under_a_trusted_root_s_name_only(simulated: Simulated, other_platform: Simulated) -> None:
    good, foreign = Quote.parse(simulated.quote()), Quote.parse(other_platform.quote())
    leaf, ca, _ = foreign.certification.certificates()
    root = good.certification.certificates()[2]
    chain = CertificationData(5, b"".join(map(encode_pem_certificate, (leaf, ca, root))))
    with pytest.raises(PeerError) as caught:
        simulated.verify(replace(foreign, certification=chain).encode())
    assert caught.value.code == "collateral-refused"


def test_the_body_of_another_enclave(simulated: Simulated) -> None:
    quote = Quote.parse(simulated.quote())
    for body in (
        replace(quote.body, isv_svn=100),
        replace(quote.body, mr_enclave=bytes(32)),
        replace(quote.body, config_id=bytes(64)),
    ):
        with pytest.raises(PeerError) as caught:
            simulated.verify(replace(quote, body=body).encode())
        assert caught.value.code == "quote-refused"


def test_another_vendor_s_quoting_enclave(simulated: Simulated) -> None:
    quote = Quote.parse(simulated.quote())
    with pytest.raises(PeerError, match="vendor"):
        simulated.verify(replace(quote, header=replace(quote.header, qe_vendor_id=bytes(16))).encode())


def test_authentication_data_of_another_size(simulated: Simulated) -> None:
    quote = Quote.parse(simulated.quote())
    with pytest.raises(PeerError) as caught:
        simulated.verify(replace(quote, authentication_data=bytes(31)).encode())
    assert caught.value.code == "malformed"


def test_a_quote_whose_certificates_are_elsewhere(simulated: Simulated) -> None:
    quote = Quote.parse(simulated.quote())
    with pytest.raises(PeerError) as caught:
        simulated.verify(replace(quote, certification=CertificationData(2, bytes(404))).encode())
    assert caught.value.code == "malformed"


def test_an_issuer_that_is_no_pck_ca(simulated: Simulated) -> None:
    quote = Quote.parse(simulated.quote())
    leaf, _, root = quote.certification.certificates()
    chain = CertificationData(5, b"".join(map(encode_pem_certificate, (leaf, root, root))))
    with pytest.raises(PeerError, match="no PCK CA"):
        simulated.verify(replace(quote, certification=chain).encode())
