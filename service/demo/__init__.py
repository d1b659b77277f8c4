"""The packaged demo: its files and its run."""
