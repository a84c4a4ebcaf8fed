"""A GPU that is not there: CPU tensors that claim to be on ``cuda``, and an account of who waits for them.

Everything runs, by values, as it would on the CPU; what mixes devices raises, as it would on a GPU. Kernels, streams
and memory are not rehearsed, nor is the backward pass, for which torch wants a CUDA context.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import nc_finetune

_PACKAGE = Path(nc_finetune.__file__).parent
_ATEN = torch.ops.aten
_COPIES = (_ATEN.copy_.default, _ATEN._to_copy.default)
_READS = (_ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.equal.default, _ATEN.masked_select.default)
CUDA = torch.device("cuda", 0)


class _Claiming(Tensor):
    """A tensor of the CPU that says it is on ``cuda``."""

    value: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, value: Tensor) -> "_Claiming":
        made: _Claiming = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=CUDA
        )
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} met a tensor of {CUDA} outside of rehearsed_cuda()")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)


class _Rehearsal(TorchDispatchMode):
    """Runs operators on the values, and minds devices as a GPU would."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
        claiming = any(isinstance(part, _Claiming) for part in tensors)
        if claiming and func not in _COPIES:
            _refuse_mixture(func, tensors)
        on_gpu = _lands_on_gpu(func, args, kwargs, claiming)
        if claiming and (func in _READS or _chooses_by_mask(func, args) or (func in _COPIES and not on_gpu)):
            self.places.add(_place())
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        with unset_fake_temporarily():
            result = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        return _claim(result, args) if on_gpu else result


def _refuse_mixture(func: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of the CPU beside those of the GPU; numbers pass, as they do on a GPU."""
    strangers = [tuple(part.shape) for part in tensors if not isinstance(part, _Claiming) and part.ndim]
    if strangers:
        raise RuntimeError(f"{func}: expected all tensors on the same device, found shapes {strangers} on the CPU")


def _lands_on_gpu(func: Any, args: Any, kwargs: dict[str, Any], claiming: bool) -> bool:
    if func is _ATEN.copy_.default:
        return isinstance(args[0], _Claiming)
    wanted = kwargs.get("device")
    return claiming if wanted is None else torch.device(wanted).type == "cuda"


def _chooses_by_mask(func: Any, args: Any) -> bool:
    return func is _ATEN.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1])


def _place() -> str:
    """Name the innermost function of ours that is running, ``module:function``."""
    frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(_PACKAGE)]
    return f"{Path(frames[-1].filename).stem}:{frames[-1].name}" if frames else "a library"


def _bare(part: Any) -> Any:
    return part.value if isinstance(part, _Claiming) else part


def _claim(result: Any, args: Any) -> Any:
    """Let results claim to be on the GPU; an argument that was changed in place stays what it is."""
    own = {id(part.value): part for part in tree_iter(args) if isinstance(part, _Claiming)}

    def claim(part: Any) -> Any:
        if not isinstance(part, Tensor) or isinstance(part, _Claiming):
            return part
        return own[id(part)] if id(part) in own else _Claiming(part)

    return tree_map(claim, result)


@contextmanager
def rehearsed_cuda() -> Iterator[set[str]]:
    """Make tensors on ``cuda`` possible, whatever hardware there is.

    Yields:
        Who read a number, chose by a mask or copied to the host so far, ``module:function`` of ours.
    """
    mode = _Rehearsal()
    # The fake mode is never reached: where there is one, torch does not look for a driver.
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode(), mode:
        yield mode.places


def to_cuda(module: nn.Module) -> nn.Module:
    """Move parameters and buffers, in place; what a module keeps elsewhere stays behind, and shows."""
    moved: dict[int, Tensor] = {}

    def move(value: Tensor) -> Tensor:
        if id(value) not in moved:
            moved[id(value)] = _Claiming(_bare(value).detach().clone()).requires_grad_(value.requires_grad)
        return moved[id(value)]

    for part in module.modules():
        for entries in (part._parameters, part._buffers):
            entries.update({name: value if value is None else move(value) for name, value in entries.items()})
    return module
