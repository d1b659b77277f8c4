"""Triton Inference Server with its Python backend: dynamic batches, an instance per worker.

PyTriton's wheel has the server and the Python backend, and no other one. The backend is used as it is, without
PyTriton's proxy to a process of its own.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytriton

from benchmarks.peers import arguments

MAX_BATCH, DELAY_US = 16, 5000
CONFIG = """backend: "python"
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: TYPE_STRING dims: [1] }}, {{ name: "domain" data_type: TYPE_INT32 dims: [1] }} ]
output [
  {{ name: "class_id" data_type: TYPE_INT32 dims: [1] }},
  {{ name: "probability" data_type: TYPE_FP32 dims: [1] }}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters {{ key: "backbone" value {{ string_value: "{backbone}" }} }}
parameters {{ key: "dtype" value {{ string_value: "{dtype}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""


def write_repository(folder: Path, options: arguments.Arguments) -> None:
    """Write the model repository."""
    version = folder / "clip" / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
    config = CONFIG.format(
        max_batch=MAX_BATCH,
        delay_us=DELAY_US,
        instances=options.workers,
        backbone=options.backbone,
        dtype=options.dtype,
        threads=options.threads,
    )
    (folder / "clip" / "config.pbtxt").write_text(config)


def write_backend(folder: Path, server: Path) -> None:
    """Lay out the Python backend with the stub of this interpreter's version beside it."""
    shutil.copytree(server / "backends" / "python", folder / "python")
    stub = "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "python" / stub).symlink_to(server / "python_backend_stubs" / version / stub)


if __name__ == "__main__":
    given = arguments.read()
    here = Path.cwd()  # a temporary folder
    package = Path(pytriton.__file__).parent
    write_repository(here / "models", given)
    write_backend(here / "backends", package / "tritonserver")
    libraries = [sysconfig.get_config_var("LIBDIR"), str(package.parent / "nvidia_pytriton.libs")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(libraries)  # the stub loads libpython, which must be this interpreter's
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the stub takes its packages from here
    program = package / "tritonserver" / "bin" / "tritonserver"
    words = [str(program), "--model-repository", str(here / "models"), "--backend-directory", str(here / "backends")]
    words += ["--http-address", "127.0.0.1", "--http-port", str(given.port)]
    words += ["--allow-grpc", "false", "--allow-metrics", "false"]
    os.execv(program, words)  # noqa: S606  our own command
