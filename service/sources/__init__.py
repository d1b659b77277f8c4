"""Bundles that the service follows in registries and on the Hugging Face Hub."""
