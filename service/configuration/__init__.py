"""Builds the settings of `caspl serve` from options and the environment."""
