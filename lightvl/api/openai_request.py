"""From a body of an OpenAI route to the request that the engine's client takes."""

import msgspec

from lightvl.api.chat import render_chat
from lightvl.api.exchange import Exchange
from lightvl.api.front import Front
from lightvl.api.generation import ChatPrompt, GenerationRequest
from lightvl.api.native import shortest
from lightvl.api.openai_schema import ChatBody, CompletionBody
from lightvl.api.sampling import openai_sampling, openai_text_options
from lightvl.api.tools import template_tools
from lightvl.errors import RequestError
from lightvl.multimodal.pool import ImageSource


def chat_request(
    exchange: Exchange, body: ChatBody, prompt_field: str = "messages"
) -> GenerationRequest:
    """Returns what a conversation asks for.

    Args:
        exchange: Of the HTTP request.
        body: Checked by `check_supported`.
        prompt_field: What the client calls the conversation.

    Raises:
        RequestError: 400 naming the field.
    """
    prompt, images = render_chat(exchange.front.tokenizer, body.messages, template_tools(body))
    return openai_request(exchange, body, prompt, images, prompt_field)


def openai_request(
    exchange: Exchange,
    body: ChatBody | CompletionBody,
    prompt: str | list[int] | ChatPrompt,
    images: tuple[ImageSource, ...],
    prompt_field: str,
) -> GenerationRequest:
    """Returns what a prompt asks for; see `GenerationRequest`.

    Raises:
        RequestError: 400 naming the field.
    """
    front = exchange.front
    vocab_size = front.model.text.vocab_size
    if isinstance(prompt, list) and not all(0 <= i < vocab_size for i in prompt):
        raise RequestError(f"prompt: expected token ids of 0 to {vocab_size - 1}", param="prompt")
    sampling = openai_sampling(body, front.model.generation, vocab_size)
    options, stop_ids = openai_text_options(body.stop, front.tokenizer)
    return GenerationRequest(
        prompt=prompt,
        prompt_field=prompt_field,
        images=images,
        sampling=msgspec.structs.replace(sampling, stop_token_ids=tuple(stop_ids)),
        text=options,
        num_sequences=body.n or 1,
        priority=body.priority or 0,
        salt=exchange.salt,
        client=exchange.client,
        timeout_s=shortest(body.timeout_s, front.config.request_timeout_s),
    )


def check_model(front: Front, name: str | None) -> None:
    """Refuses a model that isn't the one that is served.

    Raises:
        RequestError: 404.
    """
    if name is not None and name != front.model_name:
        raise RequestError(
            f"model: {name!r} is not served here, expected {front.model_name!r}",
            404,
            param="model",
            code="model_not_found",
        )
