"""lightvl: a server for vision-language models."""

from typing import TYPE_CHECKING, Any

from lightvl.types import SamplingParams

if TYPE_CHECKING:
    from lightvl.llm import LLM

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Resolves `LLM` at first use, so that the leaves can be imported alone."""
    if name == "LLM":
        from lightvl.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
