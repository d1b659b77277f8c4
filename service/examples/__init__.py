"""Examples: pictures kept for a domain, from which a head is fitted."""
