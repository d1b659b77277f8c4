"""Decoding of uploaded images: limits, headers, pixels."""
