"""Program 1: pulls images and hands keys to app enclaves."""
