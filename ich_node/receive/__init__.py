"""Images in: each one is safe on disk before it is acknowledged."""
