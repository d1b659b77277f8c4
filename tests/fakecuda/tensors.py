"""Tensors in simulated device memory: operations are queued, results are NaN until they ran."""

from typing import NamedTuple

import torch

from tests.fakecuda.memory import Block, poison

aten = torch.ops.aten
COMPOSITE = "CompositeImplicitAutograd"
WAITING = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
"""Operations whose result is on the host."""
SIZED_BY_VALUES = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
UNWRITTEN = {aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default}
SHAPES = {}
"""Shapes, strides and dtypes of results; torch's shape functions take milliseconds."""
STALE = "stale: a graph's output is read after a later replay"


class Shape(NamedTuple):
    """Size, strides and dtype of a result."""

    size: torch.Size
    stride: tuple
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor):
        return cls(tensor.shape, tensor.stride(), tensor.dtype)


def leaves(tree):
    """The values of nested tuples, lists and dictionaries."""
    if isinstance(tree, Shape) or not isinstance(tree, tuple | list | dict):
        return [tree]
    return [leaf for value in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(value)]


def mapped(change, tree):
    """The same nesting with changed values."""
    if isinstance(tree, Shape) or not isinstance(tree, tuple | list | dict):
        return change(tree)
    if isinstance(tree, dict):
        return {name: mapped(change, value) for name, value in tree.items()}
    return (tuple if isinstance(tree, tuple) else list)(mapped(change, value) for value in tree)


class DeviceTensor(torch.Tensor):
    """A tensor on the simulated device.

    Attributes:
        host: the host memory that stands for it; only queued work may read or write it.
        block: its allocation.
        replay: for a view of a graph's memory, how many replays had been queued when the view was made.
    """

    @staticmethod
    def __new__(cls, simulated, host, block, replay=None):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device("cuda", 0),
        )
        tensor.simulated, tensor.host, tensor.block, tensor.replay = simulated, host, block, replay
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def __repr__(self, **_):
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def access(self, kind, stream, clock, name):
        """See `Block.access`."""
        pool = self.block.pool
        if pool is None:
            self.block.access(kind, self.host, stream, clock, name)
            return
        pool.access(kind, stream, clock, name)
        if self.replay is not None and self.replay != pool.n_replays:
            self.simulated.violate(f"{STALE}, by {name}")

    def record_stream(self, stream):
        self.block.used_by.add(stream)

    def is_pinned(self, device=None):
        return False

    def __deepcopy__(self, memo):
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied._is_param = isinstance(self, torch.nn.Parameter)
        return copied

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        msg = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first."
        raise TypeError(msg)


def allocate(simulated, shape):
    """A device tensor."""
    with simulated.lock:
        simulated.raise_sticky()
        simulated.allocate()
        with torch.inference_mode(mode=False):
            host = torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype)
        poison(host)
        pool = simulated.capture.pool if simulated.is_captured else None
        if pool is not None:
            pool.hosts.append(host)
        return DeviceTensor(simulated, host, Block(simulated, host, pool))


def dispatch(func, args, kwargs):
    """Run one operator with at least one tensor on the device among its arguments."""
    tensors = [value for value in leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    simulated = next(tensor.simulated for tensor in tensors if isinstance(tensor, DeviceTensor))
    if func is aten.copy_.default:
        return copy(simulated, *args, **kwargs)
    if func is aten._to_copy.default:
        return to_copy(simulated, *args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # the composite of matrix products
    if func in WAITING or func in SIZED_BY_VALUES:
        return wait_and_run(simulated, func, args, kwargs)
    raise_on_mixed_devices(func, tensors)
    is_mutable = func._schema.is_mutable
    is_view = not is_mutable and any(result.alias_info is not None for result in func._schema.returns)
    if (is_mutable or is_view) and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
        return func.decompose(*args, **kwargs)
    return (mutate if is_mutable else view if is_view else compute)(simulated, func, args, kwargs)


def view(simulated, func, args, kwargs):
    """Views share a block and cost nothing."""
    base = device_tensors(args)[0]
    replay, pool = base.replay, base.block.pool
    if pool is not None and not simulated.is_captured and replay is None:
        replay = pool.n_replays
    with torch.inference_mode():
        hosts = func(*on_host(args), **on_host(kwargs))
    with torch.inference_mode(base.is_inference()):
        return mapped(
            lambda host: DeviceTensor(simulated, host, base.block, replay) if isinstance(host, torch.Tensor) else host,
            hosts,
        )


def mutate(simulated, func, args, kwargs):
    """An operator that writes to some of its arguments."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    written = [
        named[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in named
    ]
    writes = device_tensors(written)
    reads = [tensor for tensor in device_tensors((args, kwargs)) if not any(tensor is other for other in writes)]
    host_args, host_kwargs = on_host(args), on_host(kwargs)
    simulated.submit(func.name(), lambda: func(*host_args, **host_kwargs), reads, writes)
    if not func._schema.returns:
        return None
    return written[0] if len(func._schema.returns) == 1 else tuple(written)


def compute(simulated, func, args, kwargs):
    """An operator with new results."""
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    planned = shapes(func, args, kwargs)
    results = mapped(lambda one: allocate(simulated, one) if isinstance(one, Shape) else one, planned)
    if func in UNWRITTEN:
        return results
    writes = device_tensors(results)
    host_results = [tensor.host for tensor in writes]
    host_args, host_kwargs = on_host(args), on_host(kwargs)

    def work():
        found = [value for value in leaves(func(*host_args, **host_kwargs)) if isinstance(value, torch.Tensor)]
        for host, value in zip(host_results, found, strict=False):  # unused attention weights are undefined
            host.copy_(value)

    simulated.submit(func.name(), work, device_tensors((args, kwargs)), writes)
    return results


def wait_and_run(simulated, func, args, kwargs):
    """An operator for which the host waits."""
    for tensor in device_tensors((args, kwargs)):
        simulated.submit(func.name(), lambda: None, [tensor], [])
    simulated.wait_for([simulated.current_stream()], func.name())
    with torch.inference_mode(torch.is_inference_mode_enabled()):
        result = func(*on_host(args), **on_host(kwargs))
    return mapped(lambda value: to_device(simulated, value) if isinstance(value, torch.Tensor) else value, result)


def to_device(simulated, host):
    return copy(simulated, allocate(simulated, Shape.of(host)), host)


def to_copy(simulated, source, *, dtype=None, device=None, non_blocking=False, **_):
    """A copy in another dtype or on another device."""
    dtype = dtype or source.dtype
    shape = Shape.of(torch.empty_like(on_meta(source), dtype=dtype))
    if device is None or torch.device(device).type == "cuda":
        return copy(simulated, allocate(simulated, shape), source, non_blocking)
    return copy(simulated, torch.empty_strided(shape.size, shape.stride, dtype=dtype), source, non_blocking)


def copy(simulated, target, source, non_blocking=False):
    """Copies within the device and, asynchronous only with pinned memory, between it and the host."""
    to_gpu, from_gpu = isinstance(target, DeviceTensor), isinstance(source, DeviceTensor)
    there, here = on_host(target), on_host(source)
    is_waited_for = to_gpu != from_gpu
    if is_waited_for:
        is_pinned = (source if to_gpu else target).is_pinned()
        is_waited_for = not (is_pinned and non_blocking)
        if to_gpu and not is_pinned:
            simulated.forbid_in_capture("cudaMemcpyAsync from pageable memory")
            here = source.detach().clone()
    name = f"{'device' if from_gpu else 'host'} to {'device' if to_gpu else 'host'} copy"
    simulated.submit(name, lambda: there.copy_(here), device_tensors([source]), device_tensors([target]))
    if is_waited_for:
        simulated.wait_for([simulated.current_stream()], "cudaStreamSynchronize")
    return target


def raise_on_mixed_devices(func, tensors):
    """Raise for host tensors with dimensions, which CUDA kernels accept as indices only."""
    if "index" in func.name():
        return
    for tensor in tensors:
        if not isinstance(tensor, DeviceTensor) and tensor.device.type == "cpu" and tensor.ndim > 0:
            msg = f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {func.name()}."
            raise RuntimeError(msg)


def device_tensors(tree):
    return [value for value in leaves(tree) if isinstance(value, DeviceTensor)]


def on_host(tree):
    return mapped(lambda value: value.host if isinstance(value, DeviceTensor) else value, tree)


def on_meta(value):
    if isinstance(value, DeviceTensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value.to("meta") if isinstance(value, torch.Tensor) and value.ndim else value


def shapes(func, args, kwargs):
    """The results of an operator with a `Shape` in the place of each tensor."""
    facts = [Shape.of(value) if isinstance(value, torch.Tensor) else repr(value) for value in leaves((args, kwargs))]
    key = (func, *facts)
    if key not in SHAPES:
        on_device = {"device": torch.device("meta")} if "device" in kwargs else {}
        found = func(*mapped(on_meta, args), **{**mapped(on_meta, kwargs), **on_device})
        SHAPES[key] = mapped(lambda value: Shape.of(value) if isinstance(value, torch.Tensor) else value, found)
    return SHAPES[key]
