"""The HTTP layer: middleware, routes, schemas and problems; the only folder that imports FastAPI."""
