"""Bundles in registries and on the Hugging Face Hub: `caspl push`, `caspl pull` and `caspl serve --follow`."""
