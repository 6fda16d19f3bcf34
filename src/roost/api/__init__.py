"""The values that worker code holds: no I/O, no event loop. `workers` re-exports them."""
