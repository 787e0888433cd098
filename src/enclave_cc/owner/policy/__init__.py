"""Claims and request to allow or deny, with reasons. Pure."""
