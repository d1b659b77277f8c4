"""The device: its threads, batches and faults. Independent of HTTP."""
