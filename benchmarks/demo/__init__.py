"""`make demo`: versions of the demo's domains, measured with the public client."""
