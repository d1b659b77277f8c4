"""Checks of `caspl doctor`: the machine, the installation, and the service's settings and files."""
