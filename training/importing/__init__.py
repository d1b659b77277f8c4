"""Convert checkpoints of other projects to bundles: one independent module per layout."""
