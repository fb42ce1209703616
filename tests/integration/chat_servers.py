"""Servers whose chat template takes tools: the bundled model, and one that says the least."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

import lightvl
from lightvl.testing.checkpoint_weights import random_tensors
from lightvl.testing.checkpoints import text_config, vision_config, write_model
from lightvl.testing.server import ENGINE, ServerProcess
from lightvl.testing.tokenizers import write_tokenizer

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call with <tool_call></tool_call>.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The tool of OpenAI's documented examples, as chat completions and as responses take it.
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get current temperature for a given location.",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "City and country e.g. Bogotá, Colombia"}
        },
        "required": ["location"],
        "additionalProperties": False,
    },
    "strict": True,
}
CHAT_TOOLS: Any = [{"type": "function", "function": WEATHER}]
TOOLS: Any = [{"type": "function", **WEATHER}]
QUESTION = "What is the weather like in Paris today?"
_WANTED = ["<|im_end|>", '"', "]", "}"]
"""What the terse model draws wherever it may, the first before the others."""


def demo_with_tools(directory: Path) -> Path:
    """Copies the bundled model into `directory`, under a template that takes tools."""
    shutil.copytree(Path(lightvl.__file__).parent / "demo", directory)
    (directory / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    return directory


def write_terse(directory: Path) -> Path:
    """Writes a checkpoint whose logits never change: unconstrained it says nothing, else the least.

    Layers add nothing to a hidden state of ones, so that a row of the head sums to a logit.
    """
    text = text_config("qwen2", tied=False, max_position=4096, dtype="fp32")
    tower = vision_config("300m", 56)
    tensors = random_tensors(text, tower, 0)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
        elif name.endswith("embed_tokens.weight") or name == "language_model.model.norm.weight":
            tensor.fill_(1)
    write_model(directory, "original", text, tower, tensors)
    write_tokenizer(directory)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    head = torch.zeros_like(tensors["language_model.lm_head.weight"])
    head -= torch.arange(len(head))[:, None]  # no two are equal, nor near enough to be drawn
    for rank, token in enumerate(_WANTED):
        head[vocabulary[token]] = len(_WANTED) - rank
    tensors["language_model.lm_head.weight"] = head
    write_model(directory, "original", text, tower, tensors)
    (directory / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    return directory


def chat_server(directory: Path) -> ServerProcess:
    """Returns a server, not yet started, of a checkpoint that one of the functions above made."""
    flags = ["--model_dir", str(directory), "--max_total_token_num", "16384"]
    flags += ["--model_name", "demo", "--media_workers", "1", "--allow_private_media"]
    return ServerProcess(*flags, engine=ENGINE, environment={"OMP_NUM_THREADS": "1"})
