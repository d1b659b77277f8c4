"""CasPL phase 2: adapting prompts, one file per method."""
