"""The front process: HTTP in, engine messages out; no torch."""
