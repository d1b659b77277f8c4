"""Which version answers for each domain, and how a stored version becomes live. Knows no HTTP."""
