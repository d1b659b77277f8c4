"""Checkpoints of other projects become bundles: one file per layout, none of which knows another."""
