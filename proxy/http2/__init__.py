"""HTTP/2 without IO (RFC 9113): the engine seam, what all engines must agree on (`policy`), and two engines."""
