"""Connections: strict HTTP/1.1 requests, and time limits for slow clients."""
