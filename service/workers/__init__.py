"""Web processes in front of one device process, with pixels in shared memory: `--web-workers`.

A web process speaks HTTP, checks keys and limits, and decodes; the device process owns model, batcher, domains and
store, and starts the web processes. They talk over one socket pair each, which no other process can reach.
"""
