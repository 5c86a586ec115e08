"""Who we are to Cloud Run: credentials, minting, and the cache of ID tokens."""
