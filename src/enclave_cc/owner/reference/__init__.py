"""Expected measurements, where they come from, and the bundle build."""
