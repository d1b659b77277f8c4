"""Measurements that a person runs by hand; every published number of speed comes from here."""
