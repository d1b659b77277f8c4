"""The demo world: synthetic images, and two small CLIP models trained on them.

It lets the whole project run without downloads, on weights and images that this repository can regenerate. Serving and
training on real data do not need it.
"""
