"""SGX structures: report, quote, collateral, SIGSTRUCT, measurement."""
