"""Settings that all tests share."""

import pytest
from hypothesis import settings

# Examples are the same in every run, and a busy machine is not a failure.
settings.register_profile("lightvl", deadline=None, derandomize=True)
settings.load_profile("lightvl")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what a run of the GPU tests runs on; others don't import torch for it."""
    if "gpu" not in str(config.getoption("-m")):
        return None
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"device: {device}, CUDA {torch.version.cuda}, torch {torch.__version__}"
