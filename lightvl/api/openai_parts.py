"""Parts that the answers of several OpenAI routes have in common."""

import secrets
from collections.abc import Sequence as Listed

from lightvl.api.front import Front
from lightvl.api.generation import Generation, TokenEvent


def new_id(prefix: str) -> str:
    """Returns a name that no other answer has."""
    return prefix + secrets.token_hex(12)


def usage(generations: Listed[Generation]) -> dict[str, object]:
    """Returns `usage` as both completion routes have it."""
    prompt = sum(g.num_prompt_tokens for g in generations)
    completion = sum(s.num_tokens for g in generations for s in g.sequences)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": prompt_details(generations),
    }


def prompt_details(generations: Listed[Generation]) -> dict[str, int]:
    """Returns which of the prompts' tokens were cached and which are pictures'."""
    return {
        "cached_tokens": sum(g.cached_tokens for g in generations),
        "image_tokens": sum(g.num_image_tokens for g in generations),
        "cached_image_tokens": sum(g.num_cached_image_tokens for g in generations),
    }


def chat_logprobs(front: Front, events: Listed[TokenEvent]) -> list[dict[str, object]]:
    """Returns `content` of a choice's `logprobs`."""
    return [
        {
            **_chat_logprob(front, event.token_id, event.logprob),
            "top_logprobs": [
                _chat_logprob(front, token_id, logprob)
                for token_id, logprob in event.top_logprobs or ()
            ],
        }
        for event in events
    ]


def text_logprobs(front: Front, events: Listed[TokenEvent], offset: int = 0) -> dict[str, object]:
    """Returns `logprobs` of `/v1/completions`.

    Args:
        front: Has the tokenizer.
        events: Tokens that follow each other.
        offset: Characters of the answer before them.
    """
    token_text = front.tokenizer.token_text
    offsets = []
    for event in events:
        offsets.append(offset)
        offset += len(event.text)
    return {
        "tokens": [token_text(event.token_id) for event in events],
        "token_logprobs": [event.logprob for event in events],
        "top_logprobs": [
            {token_text(token_id): logprob for token_id, logprob in event.top_logprobs or ()}
            for event in events
        ],
        "text_offset": offsets,
    }


def _chat_logprob(front: Front, token_id: int, logprob: float | None) -> dict[str, object]:
    data = front.tokenizer.token_bytes(token_id)
    text = data.decode(errors="replace")
    return {"token": text, "logprob": logprob, "bytes": list(data)}
