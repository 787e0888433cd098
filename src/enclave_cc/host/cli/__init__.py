"""Node commands of `enclave-cc`."""
