"""Evaluation: the papers' protocols, their published numbers, and reports."""
