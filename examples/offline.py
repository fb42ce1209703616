"""The engine without a server: `python examples/offline.py`."""

from pathlib import Path

from lightvl import LLM, SamplingParams

picture = Path(__file__).with_name("face.png")


def ask(question: str) -> dict[str, object]:
    """Returns a user's message about the picture."""
    parts = [
        {"type": "image_url", "image_url": {"url": str(picture)}},
        {"type": "text", "text": question},
    ]
    return {"role": "user", "content": parts}


with LLM() as llm:
    greedy = SamplingParams(temperature=0.0, max_new_tokens=64)
    answer = llm.chat([ask("What is this?")], greedy)
    print(answer.text, f"({answer.num_prompt_tokens} prompt tokens)")

    prompts = [
        f"<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in ("Describe the picture.", "What color is the background?")
    ]
    for output in llm.generate(prompts, greedy, images=[[picture], [picture]]):
        print(output.text, f"({output.num_cached_tokens} cached)")
