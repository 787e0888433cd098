"""Evidence and collateral to claims. Pure."""
