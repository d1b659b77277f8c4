"""From a client's bytes to pixels: limits, headers, decoding."""
