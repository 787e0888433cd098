"""Owner commands of `enclave-cc`."""
