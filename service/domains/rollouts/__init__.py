"""Rollouts: a candidate beside a domain's live version, compared on the same images, ended by thresholds."""
