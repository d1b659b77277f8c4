"""Our model behind LitServe: its HTTP and batching, so that the model and the server are compared separately."""

from benchmarks.peers.litserve_batched import serve
from benchmarks.peers.our_clip import OurClip

if __name__ == "__main__":
    serve(OurClip)
