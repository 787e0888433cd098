"""The pod engine: bundles, runc, the supervisor and crash recovery."""
