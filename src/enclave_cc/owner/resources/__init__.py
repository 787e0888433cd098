"""Resource storage behind one interface."""
