"""Other servers for the same question, each a small file, measured one at a time in an environment of its own."""
