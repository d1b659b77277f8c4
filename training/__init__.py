"""Recipes that learn prompts, and the demo world they can be tried on."""
