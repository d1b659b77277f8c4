"""HTTP in and out: middleware, routes, bodies, problems; the only folder that knows FastAPI."""
