"""Protocol buffers: sources and the small codec that reads them."""
