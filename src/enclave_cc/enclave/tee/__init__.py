"""What the enclave's platform offers: report, quote, seal key."""
