"""Sizing: how many servers a load needs, from measured batch times. The command is `caspl plan`."""
