"""What the operator library has and what torch finds here, as one JSON object.

`python -m lightvl.ops.report`: a process of its own, since whoever asks must not import torch, and
since a library that doesn't load may end the process.
"""

import json
import sys


def report() -> dict[str, object]:
    """Returns versions, devices and kernels; `error` says why there are no kernels."""
    import torch

    found: dict[str, object] = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "cpu_isa": None,
        "cuda_kernels": False,
        "error": None,
    }
    try:
        from lightvl.ops import check_device, cpu_isa

        found["cpu_isa"] = cpu_isa()
    except (ImportError, ValueError) as error:
        return found | {"error": str(error)}
    try:
        check_device(torch.device("cuda"))
    except RuntimeError:
        return found
    return found | {"cuda_kernels": True}


def _gpu(index: int) -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report()))
