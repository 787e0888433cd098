"""ttrpc: frames, streams, connection; sans-io."""
