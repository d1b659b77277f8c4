"""The embedded demo world: drawn pictures, and the two small CLIP models trained on them.

Nothing here is needed to serve or to learn prompts on real data; it exists so that a machine without any
download can run the whole product on weights and pictures that this repository can make again by itself.
"""
