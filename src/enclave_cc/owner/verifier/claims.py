"""What a verified quote says. Made by `owner.verifier.quote` alone; policies take `Claims`, never a quote."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.sgx.collateral import format_moment
from enclave_cc.wire.sgx.quote import QuoteHeader
from enclave_cc.wire.sgx.report import ReportBody

SGX_TYPES = {0: "Standard", 1: "Scalable", 2: "Scalable with Integrity"}


@record(kw_only=True)
class Claims:
    """Authenticated facts; times in seconds since 1970."""

    header: QuoteHeader
    body: ReportBody
    tcb_status: str  # the worse of platform and quoting enclave
    tcb_date: str  # RFC 3339, of the platform's TCB level
    advisory_ids: tuple[str, ...]
    tcb_evaluation_number: int
    fmspc: bytes  # 6
    pce_id: bytes  # 2
    ppid: bytes  # 16
    platform_instance_id: bytes | None  # 16, as the certificate has it; Platform CA only
    sgx_type: int
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None
    earliest_issue_date: int
    latest_issue_date: int
    earliest_expiration_date: int
    pck_crl_number: int
    root_ca_crl_number: int
    root_key_id: bytes  # SHA-384 of the root key's uncompressed point
    root: str  # the owner's name for the root
    simulated: bool

    @property
    def debug(self) -> bool:
        """Always false today: a debug enclave is refused before there are claims."""
        return self.body.attributes.debug

    def to_upstream_json(self) -> dict[str, object]:
        """The members of `input.sgx` as Trustee's attestation policies read them, with our `fmspc`, `root`, `simulated`.

        Numbers of the quote are hex of their little-endian bytes, as upstream has them.
        """
        body, encoded, header = self.body, self.body.encode(), self.header.encode()
        document: dict[str, object] = {
            "header": {
                "version": header[0:2].hex(),
                "att_key_type": header[2:4].hex(),
                "att_key_data_0": header[4:8].hex(),
                "qe_svn": header[8:10].hex(),
                "pce_svn": header[10:12].hex(),
                "vendor_id": header[12:28].hex(),
                "user_data": header[28:48].hex(),
            },
            "body": {
                "cpu_svn": body.cpu_svn.hex(),
                "misc_select": encoded[16:20].hex(),
                "reserved1": encoded[20:32].hex(),
                "isv_ext_prod_id": body.isv_ext_prod_id.hex(),
                "attributes.flags": encoded[48:56].hex(),
                "attributes.xfrm": encoded[56:64].hex(),
                "mr_enclave": body.mr_enclave.hex(),
                "reserved2": encoded[96:128].hex(),
                "mr_signer": body.mr_signer.hex(),
                "reserved3": encoded[160:192].hex(),
                "config_id": body.config_id.hex(),
                "isv_prod_id": encoded[256:258].hex(),
                "isv_svn": encoded[258:260].hex(),
                "config_svn": encoded[260:262].hex(),
                "reserved4": encoded[262:304].hex(),
                "isv_family_id": body.isv_family_id.hex(),
                "report_data": body.report_data.hex(),
            },
            "tcb_status": self.tcb_status,
            "tcb_date": self.tcb_date,
            "advisory_ids": list(self.advisory_ids),
            "tcb_eval_num": self.tcb_evaluation_number,
            "collateral_expiration_status": "0",  # expired collateral is refused before there are claims
            "earliest_issue_date": format_moment(self.earliest_issue_date),
            "latest_issue_date": format_moment(self.latest_issue_date),
            "earliest_expiration_date": format_moment(self.earliest_expiration_date),
            "pck_crl_num": self.pck_crl_number,
            "root_ca_crl_num": self.root_ca_crl_number,
            "platform_provider_id": self.ppid.hex(),
            "sgx_type": SGX_TYPES.get(self.sgx_type, f"Unknown ({self.sgx_type})"),
            "root_key_id": self.root_key_id.hex(),
            "fmspc": self.fmspc.hex(),
            "root": self.root,
            "simulated": self.simulated,
        }
        if self.platform_instance_id is not None:
            document["platform_instance_id"] = self.platform_instance_id[::-1].hex()  # a GUID, little-endian in the certificate
        if self.sgx_type > 0:
            document["is_dynamic_platform"] = bool(self.dynamic_platform)
            document["is_cached_keys"] = bool(self.cached_keys)
            document["is_smt_enabled"] = bool(self.smt_enabled)
        return document

    def to_json(self) -> dict[str, object]:
        """What `enclave-cc verify quote` prints: upstream's members, and the identity in plain numbers beside them."""
        return {
            **self.to_upstream_json(),
            "debug": self.debug,
            "init_data": self.body.config_id.hex(),
            "isv_prod_id": self.body.isv_prod_id,
            "isv_svn": self.body.isv_svn,
            "mr_enclave": self.body.mr_enclave.hex(),
            "mr_signer": self.body.mr_signer.hex(),
            "pce_id": self.pce_id.hex(),
            "report_data": self.body.report_data.hex(),
        }
