"""Evidence and collateral to claims. Pure: no network, no clock.

`quote.verify_quote` is the one way to `claims.Claims`; `roots` names whom to trust.
"""
