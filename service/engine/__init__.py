"""The device: its threads, the batches that run there, its faults. Knows no HTTP."""
