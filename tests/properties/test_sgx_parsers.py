"""Any bytes parse or raise `PeerError`, and what parses is written back as the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.crypto import rsa3072
from enclave_cc.crypto.x509 import Certificate, RevocationList
from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import cpu_socket, pcs, sigstruct
from enclave_cc.wire.sgx.certification import CertificationData, encode_pem_certificate, parse_pem_certificates
from enclave_cc.wire.sgx.collateral import Collateral, QeIdentity, TcbInfo
from enclave_cc.wire.sgx.cpu_socket import Op
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.manifest import File, Manifest
from enclave_cc.wire.sgx.quote import Quote
from enclave_cc.wire.sgx.report import Attributes, KeyRequest, Report, ReportBody, TargetInfo

VECTORS = Path(__file__).parents[1] / "vectors/sgx"
QUOTE = (VECTORS / "phala-quote.bin").read_bytes()
COLLATERAL = (VECTORS / "phala-collateral.json").read_bytes()
PARSED = Collateral.parse(COLLATERAL)
CHAIN = Quote.parse(QUOTE).certification.certificates()
SIGNED = sigstruct.sign(rsa3072.SigningKey.generate(), mr_enclave=bytes(32), isv_prod_id=1, isv_svn=1, date=20260101)
MANIFEST = Manifest(
    role="app",
    entrypoint=("/x", "y"),
    environment={"A": "b"},
    files=(File("a", "l", 0o777, "b"), File("b", "f", 0o644, "0" * 64), File("c", "d", 0o755)),
).encode()

# parser, valid input, and the writer that must give the input back (None: the form is not unique)
PARSERS: dict[str, tuple[Callable[[bytes], Any], bytes, Callable[[Any], bytes] | None]] = {
    "report body": (ReportBody.parse, QUOTE[48:432], ReportBody.encode),
    "report": (Report.parse, QUOTE[48:432] + bytes(48), Report.encode),
    "target info": (TargetInfo.parse, TargetInfo.of(ReportBody.parse(QUOTE[48:432])).encode(), TargetInfo.encode),
    "key request": (KeyRequest.parse, KeyRequest(key_name=4).encode(), KeyRequest.encode),
    "quote": (Quote.parse, QUOTE, Quote.encode),
    "certification": (CertificationData.parse, QUOTE[1046:], CertificationData.encode),
    "chain": (lambda data: CertificationData(5, data).certificates(), QUOTE[1052:], None),
    "sigstruct": (sigstruct.SigStruct.parse, SIGNED.encode(), sigstruct.SigStruct.encode),
    "manifest": (Manifest.parse, MANIFEST, Manifest.encode),
    "identity": (EnclaveIdentity.parse, EnclaveIdentity(mr_enclave=bytes(32)).encode(), None),
    "collateral": (Collateral.parse, COLLATERAL, None),
    "tcb info": (lambda data: TcbInfo.parse(data.decode("utf-8", "replace")), PARSED.tcb_info.encode(), None),
    "qe identity": (lambda data: QeIdentity.parse(data.decode("utf-8", "replace")), PARSED.qe_identity.encode(), None),
    "certificate": (Certificate.parse, CHAIN[0], lambda certificate: certificate.der),
    "crl": (RevocationList.parse, PARSED.pck_crl, None),
    "pem": (parse_pem_certificates, encode_pem_certificate(CHAIN[0]), None),
    "signed tcb info": (
        lambda data: pcs.parse_signed_document(data, "tcbInfo"),
        f'{{"tcbInfo":{PARSED.tcb_info},"signature":"{PARSED.tcb_info_signature.hex()}"}}'.encode(),
        None,
    ),
    "service's crl": (pcs.parse_crl, PARSED.pck_crl.hex().encode(), None),
    "issuer chain": (
        lambda data: pcs.parse_issuer_chain(data.decode("latin-1")),
        quote(PARSED.pck_crl_issuer_chain).encode(),
        None,
    ),
    "request header": (cpu_socket.parse_request_header, cpu_socket.encode_request(Op.SELF), None),
    "ereport": (lambda data: cpu_socket.parse_request_body(Op.EREPORT, data), bytes(576), None),
    "answer header": (cpu_socket.parse_answer_header, cpu_socket.encode_answer(b""), None),
    "refusal": (
        lambda data: cpu_socket.parse_answer_body(Op.SELF, False, data),
        cpu_socket.encode_refusal("malformed", "x")[5:],
        None,
    ),
}
changes = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "end"]), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)),
    max_size=4,
)


def change(data: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    buffer = bytearray(data)
    for kind, at, new in steps:
        offset = at % (len(buffer) + 1)
        match kind:
            case "set":
                buffer[offset : offset + len(new)] = new
            case "cut":
                del buffer[offset : offset + len(new)]
            case "insert":
                buffer[offset:offset] = new
            case _:
                del buffer[offset:]
    return bytes(buffer)


@pytest.mark.parametrize("name", PARSERS)
@given(steps=changes, noise=st.none() | st.binary(max_size=600))
@settings(max_examples=60, deadline=None)
def test_any_bytes_parse_or_raise_peer_error(name: str, steps: list[tuple[str, int, bytes]], noise: bytes | None) -> None:
    parse, valid, write = PARSERS[name]
    data = change(valid if noise is None else noise, steps)
    try:
        parsed = parse(data)
    except PeerError:
        return
    if write is not None:
        assert write(parsed) == data


words = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=10)
segments = words.filter(lambda word: "/" not in word and word not in (".", ".."))
files = st.dictionaries(
    st.lists(segments, min_size=1, max_size=3).map("/".join),
    st.one_of(
        st.tuples(st.just("f"), st.binary(min_size=32, max_size=32).map(bytes.hex)),
        st.tuples(st.just("d"), st.just("")),
        st.tuples(st.just("l"), words),
    ),
    max_size=6,
)


@given(
    role=st.sampled_from(["agent", "app"]),
    entrypoint=st.lists(words, min_size=1, max_size=4),
    environment=st.dictionaries(words.filter(lambda word: "=" not in word), words, max_size=4),
    entries=files,
    pages=st.integers(1, 1 << 20),
)
@settings(max_examples=100, deadline=None)
def test_manifests_round_trip(
    role: str, entrypoint: list[str], environment: dict[str, str], entries: dict[str, tuple[str, str]], pages: int
) -> None:
    manifest = Manifest(
        role=role,
        entrypoint=tuple(entrypoint),
        environment=environment,
        files=tuple(File(path, kind, 0o755, value) for path, (kind, value) in sorted(entries.items())),
        heap_size=pages * 4096,
    )
    assert Manifest.parse(manifest.encode()) == manifest


@given(
    numbers=st.tuples(*[st.integers(0, (1 << bits) - 1) for bits in (32, 8, 64, 64, 16, 16, 16)]),
    fields=st.tuples(*[st.binary(min_size=size, max_size=size) for size in (16, 16, 32, 32, 64, 16, 64)]),
)
@settings(max_examples=100, deadline=None)
def test_report_bodies_round_trip(numbers: tuple[int, ...], fields: tuple[bytes, ...]) -> None:
    body = ReportBody(
        misc_select=numbers[0],
        cet_attributes=numbers[1],
        attributes=Attributes(numbers[2], numbers[3]),
        isv_prod_id=numbers[4],
        isv_svn=numbers[5],
        config_svn=numbers[6],
        cpu_svn=fields[0],
        isv_ext_prod_id=fields[1],
        mr_enclave=fields[2],
        mr_signer=fields[3],
        config_id=fields[4],
        isv_family_id=fields[5],
        report_data=fields[6],
    )
    assert ReportBody.parse(body.encode()) == body
    assert TargetInfo.parse(TargetInfo.of(body).encode()) == TargetInfo.of(body)
