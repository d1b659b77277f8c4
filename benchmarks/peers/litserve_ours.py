"""Our model behind LitServe: its HTTP and batching, so that the model and the server are compared separately."""

from functools import partial

from benchmarks.peers import arguments
from benchmarks.peers.litserve_batched import serve
from benchmarks.peers.our_clip import OurClip

if __name__ == "__main__":
    settings = dict(setting.split("=", 1) for setting in arguments.read().settings)
    serve(partial(OurClip, settings=settings))
