# Release policy: may the bearer of this token have this resource?
#
# input: the claims of the attestation token. data: {"plugin", "resource-path": [...], "query": {...}} of the request.
package policy

import rego.v1

default allow := false

# A resource goes to an attester of which every piece of evidence was found good.
allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	every _, submod in input.submods {
		submod["ear.status"] == "affirming"
	}
}
