"""Access control, from method, path and headers only: routes and their scopes, API keys, rate limits."""
