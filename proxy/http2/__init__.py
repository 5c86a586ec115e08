"""HTTP/2 without IO (RFC 9113): the events an engine reports, the engine seam, and the field rules."""
