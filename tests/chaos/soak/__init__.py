"""A random soak: every fault of the harness in any order, against a fleet under load; `scripts/chaos`."""
