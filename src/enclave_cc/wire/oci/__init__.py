"""OCI references, manifests, image config, ocicrypt and signature payloads."""
