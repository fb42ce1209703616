"""Loads the compiled operator library and hands out its operators."""

from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch


def _load() -> ModuleType:
    folder = Path(__file__).resolve().parent.parent
    path = next((p for s in EXTENSION_SUFFIXES if (p := folder / f"_C{s}").exists()), None)
    if path is None:
        raise ImportError("lightvl's operator library is not built: run `pip install .`")
    spec = spec_from_file_location("lightvl._C", path)
    assert spec is not None
    assert spec.loader is not None
    try:
        library = module_from_spec(spec)
        spec.loader.exec_module(library)
    except ImportError as error:
        raise ImportError(_advice(str(error))) from error
    return library


def _advice(reason: str) -> str:
    if "libtorch_cuda" in reason or "libcudart" in reason:
        return (
            "lightvl was built for a torch with CUDA, but the installed torch "
            f"{torch.__version__} has none: install a CUDA torch or rebuild lightvl"
        )
    return (
        f"lightvl's operator library does not load with torch {torch.__version__}: "
        f"rebuild lightvl ({reason})"
    )


def out_operator(name: str) -> Callable[..., None]:
    """Return operator `lightvl::name`, which writes into tensors it is given and returns nothing.

    Its fake implementation, registered here, has nothing to compute: the outputs' shapes are
    those of the tensors given.
    """
    torch.library.register_fake(f"lightvl::{name}", lambda *args: None)
    operator: Callable[..., None] = _library.bind(name, getattr(torch.ops.lightvl, name).default)
    return operator


def cpu_isa() -> str:
    """Return the instruction set that the CPU kernels run with: generic, avx2 or avx512.

    `LIGHTVL_CPU_ISA` in the environment overrides the choice.

    Raises:
        ValueError: it names a set that the build or the processor lacks.
    """
    name: str = torch.ops.lightvl.cpu_isa()
    return name


def check_device(device: torch.device) -> None:
    """Check that the operators run on `device`.

    Raises:
        RuntimeError: this build has no kernels for it.
    """
    key = "CUDA" if device.type == "cuda" else device.type.upper()
    if not torch._C._dispatch_has_kernel_for_dispatch_key("lightvl::rms_norm", key):
        raise RuntimeError(
            f"this build has CPU kernels only, not for {device.type}; "
            "reinstall where torch has CUDA and nvcc is found"
        )


_library = _load()
