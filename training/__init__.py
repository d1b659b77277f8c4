"""Prompt learning: boosting, adapting, evaluation, import of other checkpoints, and the demo world."""
