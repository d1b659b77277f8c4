"""Phase 2 of CasPL: adapting prompts, one file per method."""
