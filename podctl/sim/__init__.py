"""Emulated clouds on loopback that behave, and misbehave, as real ones do. `podctl sim` and tests use them."""
