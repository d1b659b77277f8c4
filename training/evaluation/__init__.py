"""Measuring what prompts bring: the papers' protocols, their published numbers, and reports."""
