"""Replaces torch's CUDA by a simulated device during a `with` block."""

import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import torch

from tests.fakecuda.device import Event, SimulatedDevice, Stream
from tests.fakecuda.graphs import Graph, Pool
from tests.fakecuda.memory import poison
from tests.fakecuda.tensors import Shape, allocate, to_device

PROPERTIES = SimpleNamespace(name="simulated", multi_processor_count=132, total_memory=80 << 30, major=9, minor=0)


@contextmanager
def simulated_cuda(**options):
    """`torch.cuda` and tensors on "cuda" are those of a `SimulatedDevice`.

    Args:
        options: of `SimulatedDevice`.
    """
    simulated = SimulatedDevice(**options)
    torch._C._ensureCUDADeviceGuardSet()  # without it torch refuses tensors that claim to be on CUDA
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with ExitStack() as stack:
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
        _register_factories(library, simulated)
        for name, replacement in _runtime(simulated).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        for owner, name, replacement in _functions(simulated):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield simulated
        simulated.finish()


def _runtime(simulated):
    """Replacements for functions and classes of `torch.cuda`."""
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or simulated.capability >= (8, 0),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": lambda _: nullcontext(),
        "Stream": lambda device=None, priority=0: Stream(simulated),
        "Event": lambda **options: Event(simulated, **options),
        "stream": simulated.on_stream,
        "current_stream": simulated.current_stream,
        "default_stream": lambda device=None: simulated.default_stream,
        "synchronize": simulated.synchronize,
        "empty_cache": simulated.empty_cache,
        "CUDAGraph": lambda: Graph(simulated),
        "graph_pool_handle": lambda: Pool(simulated),
        "get_device_capability": lambda device=None: simulated.capability,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_rng_state": lambda device=None: torch.get_rng_state(),  # kernels draw from the CPU's generator
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90"],
        "get_device_name": lambda device=None: PROPERTIES.name,
    }


def _register_factories(library, simulated):
    """Register CUDA kernels of operators without tensor arguments; all others are dispatched by `DeviceTensor`."""

    def empty(size, *, dtype=None, memory_format=None, **_):
        return allocate(simulated, Shape.of(torch.empty(size, dtype=dtype, device="meta")))

    def empty_strided(size, stride, *, dtype=None, **_):
        return allocate(simulated, Shape(size, stride, dtype or torch.get_default_dtype()))

    def arange(*bounds, dtype=None, **_):
        return _filled(simulated, torch.arange(*bounds, dtype=dtype))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "overriding a previously registered kernel"
        kernels = {"empty.memory_format": empty, "empty_strided": empty_strided}
        kernels |= dict.fromkeys(("arange", "arange.start", "arange.start_step"), arange)
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CUDA", allow_override=True)


def _filled(simulated, host):
    """A device tensor that a kernel fills, without a copy from the host."""
    tensor = allocate(simulated, Shape.of(host))
    target = tensor.host
    simulated.submit("fill", lambda: target.copy_(host), [], [tensor])
    return tensor


def _functions(simulated):
    """Replacements for torch's functions that pin memory or make tensors from Python's numbers."""
    real_empty, real_tensor = torch.empty, torch.tensor

    def pin(host):
        simulated.forbid_in_capture("cudaHostAlloc")
        simulated.pinned[host.untyped_storage().data_ptr()] = host.untyped_storage()  # kept: no other gets its address
        return host

    def empty(*size, pin_memory=False, **options):
        host = real_empty(*size, **options)
        if not pin_memory:
            return host
        poison(host)
        return pin(host)

    def is_pinned(host, device=None):
        return host.device.type == "cpu" and host.untyped_storage().data_ptr() in simulated.pinned

    def tensor(data, *, device=None, **options):
        host = real_tensor(data, **options)
        on_cuda = device is not None and torch.device(device).type == "cuda"
        return to_device(simulated, host) if on_cuda else host.to(device)

    return [
        (torch, "empty", empty),
        (torch, "tensor", tensor),
        (torch.Tensor, "is_pinned", is_pinned),
        (torch.Tensor, "pin_memory", lambda host, device=None: host if is_pinned(host) else pin(host.clone())),
    ]
