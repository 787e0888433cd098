"""Puts enclave-cc into a node's containerd, and takes it out again without a trace."""
