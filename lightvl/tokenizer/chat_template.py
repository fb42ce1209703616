"""Chat templates: the checkpoint's own, or InternVL's conversation formats by name."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lightvl.errors import RequestError, StartupError

# ruff: noqa: RUF001
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。"
)
SYSTEM_1_5 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)


def _chatml(system: str, separator: str, start: str = "") -> str:
    return (
        start + "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        f"{system}<|im_end|>{separator}"
        "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>"
        f"{separator}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


CONVERSATIONS = {
    "internvl2_5": _chatml(SYSTEM_2_5, "\n"),
    "Hermes-2": _chatml(SYSTEM_1_5, ""),
    "internlm2-chat": _chatml(SYSTEM_1_5, "", start="<s>"),
}
"""Templates of the original repositories by the name in `config.json`, rewritten for Jinja."""


class TemplateRefusal(Exception):
    """A template called `raise_exception`."""


class ChatTemplate:
    """A compiled template in Jinja's sandbox.

    Args:
        source: Jinja source; the dialect is the one of Hugging Face's chat templates.
        special_tokens: Names such as `bos_token` that the template may use.

    Attributes:
        takes_tools: Whether it describes tools and has calls in `<tool_call>`.

    Raises:
        StartupError: The source isn't valid Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            keep_trailing_newline=True,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise StartupError(f"the chat template can't be read: {error}") from None
        self._special_tokens = special_tokens
        self.takes_tools = "tools" in source and "<tool_call>" in source

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        **variables: object,
    ) -> str:
        """Returns the prompt of a conversation.

        Args:
            messages: Each with `role` and `content` (text).
            add_generation_prompt: Whether the prompt ends where the assistant's answer starts.
            tools: Tool descriptions in OpenAI's form.
            variables: Further variables of the template (`chat_template_kwargs`).

        Raises:
            RequestError: The template refuses these messages.
        """
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **{**variables, **self._special_tokens},
            )
        except TemplateRefusal as refusal:
            raise RequestError(f"messages: {refusal}", param="messages") from None
        except (TemplateError, SecurityError, TypeError, ValueError, OverflowError):
            raise RequestError(
                "messages: the model's chat template can't render them", param="messages"
            ) from None


def choose_template(tokenizer_config: dict[str, Any], conversation: str | None) -> str | None:
    """Returns the source of a checkpoint's template, or None when it has none.

    Args:
        tokenizer_config: With `chat_template` as text or as a list of named templates.
        conversation: The `template` of an original-layout `config.json`.
    """
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default", next(iter(named.values()), None))
    if isinstance(template, str):
        return template
    return CONVERSATIONS.get(conversation or "")


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja's own filter would escape for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateRefusal(message)
