"""KBS protocol (RCAR 0.4.0): messages, resource URIs."""
