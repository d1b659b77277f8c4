"""The HTTP service: one frozen backbone, every domain's live prompt stack beside it."""
