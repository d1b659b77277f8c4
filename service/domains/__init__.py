"""The live version of each domain, and how a stored version goes live. Independent of HTTP."""
