# Attestation policy: verified claims in, an AR4SI trustworthiness vector out.
#
# input: the claims of one piece of evidence, under the name of its TEE (`input.sgx`), with `report_data`, `init_data`,
# `init_data_claims` and `runtime_data_claims`. Reference values: `query_reference_value(name)`, null if there is none.
#
# What a policy is not asked: the evidence's signatures, its collateral and root, and its binding to nonce and key.
# Evidence that fails there never comes here.
package policy

import rego.v1

# 33: executables are not recognised.
default executables := 33

# 97: the hardware or firmware is not recognised.
default hardware := 97

# 36: configuration relevant to security is not known to be right.
default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

##### Intel SGX

# 3: only approved executables were loaded at start. `sgx_mr_enclave` is a list of MRENCLAVE in hex.
executables := 3 if {
	input.sgx
	input.sgx.body.mr_enclave in query_reference_value("sgx_mr_enclave")
}

# Or any build of a signer's product that is new enough: `sgx_mr_signer` is a list of
# {"mr_signer": hex, "isv_prod_id": number, "min_isv_svn": number}.
else := 3 if {
	input.sgx
	signers := query_reference_value("sgx_mr_signer")
	is_array(signers) # null has no members, and asking for one is an error
	some accepted in signers
	input.sgx.body.mr_signer == accepted.mr_signer
	number_of(input.sgx.body.isv_prod_id) == accepted.isv_prod_id
	number_of(input.sgx.body.isv_svn) >= accepted.min_isv_svn
}

# 2: genuine hardware, at a TCB level that the owner accepts. `sgx_tcb_status` is a list that replaces the default.
hardware := 2 if {
	input.sgx
	input.sgx.tcb_status in accepted_tcb_status
	input.sgx.collateral_expiration_status == "0"
}

# 32: genuine, with known vulnerabilities.
else := 32 if input.sgx

default accepted_tcb_status := ["UpToDate", "SWHardeningNeeded"]

accepted_tcb_status := listed if {
	listed := query_reference_value("sgx_tcb_status")
	is_array(listed)
}

# 2: not a debug enclave, whose memory the host can read. Bit 1 of ATTRIBUTES.FLAGS, first byte, second hex digit.
configuration := 2 if {
	input.sgx
	substring(input.sgx.body["attributes.flags"], 1, 1) in {"0", "1", "4", "5", "8", "9", "c", "d"}
}

# A 16-bit number from four hex digits, low byte first, as quotes spell it.
number_of(hex) := ((digit(hex, 0) * 16) + digit(hex, 1)) + (256 * ((digit(hex, 2) * 16) + digit(hex, 3)))

digit(hex, index) := indexof("0123456789abcdef", substring(hex, index, 1))

##### Sample evidence, for protocol tests. The KBS takes it only if its configuration names it.

executables := 3 if {
	input.sample
	input.sample.launch_digest in query_reference_value("launch_digest")
}

hardware := 2 if {
	input.sample
	input.sample.svn in query_reference_value("svn")
}

configuration := 2 if {
	input.sample
	input.sample.debug == false
}
