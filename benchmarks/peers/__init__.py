"""Other servers for the same task, one small file each, measured one at a time in environments of their own."""
