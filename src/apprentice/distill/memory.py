"""What a training step keeps in memory, counted while it runs; with imagined tensors, without the memory itself.

Imagined tensors (PyTorch's fake ones) have a shape and a type and no content, so a model that fits on no machine here
can be run through a step. What is made of them is imagined as well, except integers and decisions: those are computed,
as if imagined numbers were next to nothing. The rest (token ids, positions, who sees whom) is real, so a model's own
code that looks at its prompt goes the way it always goes; but masks turned into numbers, one a layer, are imagined.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map, tree_map_only

aten = torch.ops.aten
NEXT_TO_NOTHING = 1e-6


class Account(TorchDispatchMode):
    """While active, counts the bytes of all tensors that it has met and that are still alive, imagined or real.

    Attributes:
        live: bytes now.
        peak: the most since `peak` was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._met: set[int] = set()
        self._imagines = False
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def imagined(self, tensor: Tensor) -> Tensor:
        """A tensor without content like `tensor`, on the CPU; integers are real, and zero."""
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        self._imagines = True
        with self._fake:
            return torch.empty(shape, dtype=dtype, device="cpu")

    def meet(self, tensors: Iterable[Tensor]) -> None:
        """Count these too."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._met:
                self._met.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._met.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self._run(func, args, kwargs or {})
        self.meet(each for each in tree_iter(result) if isinstance(each, Tensor))
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        of_mask = self._imagines and func is aten.where.self
        if not of_mask and not any(isinstance(each, FakeTensor) for each in tree_iter((args, kwargs))):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return NEXT_TO_NOTHING
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _places(args[1]), *args[2:])  # how many a mask marks, its content tells
        with self._fake:
            result = func(*args, **kwargs)
        if all(not isinstance(each, Tensor) or each.is_floating_point() for each in tree_iter(result)):
            return result
        args, kwargs = tree_map_only(FakeTensor, _stand_in, (args, kwargs))
        real = func(*args, **kwargs)
        return tree_map(lambda r, f: f if isinstance(f, Tensor) and f.is_floating_point() else r, real, result)


class Saved(AbstractContextManager[None]):
    """While active, adds up what autograd saves for the backward pass, each storage once, without `known` tensors.

    Attributes:
        size: bytes.
    """

    def __init__(self, known: Iterable[Tensor]):
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._sizes[storage._cdata] = storage.nbytes()
        return tensor

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)


def imagine(module: nn.Module, account: Account) -> None:
    """Replace a module's parameters and buffers, in place, by imagined ones; what was shared stays shared."""
    made: dict[int, Tensor] = {}

    def of(tensor: Tensor, wrap: Callable[[Tensor], Tensor]) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = wrap(account.imagined(tensor))
        return made[id(tensor)]

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                trains = parameter.requires_grad
                part._parameters[name] = of(parameter, lambda t, g=trains: nn.Parameter(t, g))  # type: ignore[misc, assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = of(buffer, lambda t: t)


def _places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Masks among indices as the places that they mark."""
    found: list[Tensor | None] = []
    for index in indices:
        found += index.nonzero().unbind(-1) if index is not None and index.dtype == torch.bool else [index]
    return found


def _stand_in(tensor: Tensor) -> Tensor:
    """Small numbers of a tensor's shape that take no memory."""
    return torch.full((), NEXT_TO_NOTHING, dtype=tensor.dtype).expand(tensor.shape)
