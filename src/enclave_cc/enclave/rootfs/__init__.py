"""From layer streams to a sealed, mountable tree."""
