"""The packaged demo: its files and its process."""
