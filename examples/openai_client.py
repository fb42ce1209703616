"""The official client against a running server: a whole answer, then a streamed one.

`pip install openai`, then `python examples/openai_client.py [PICTURE [QUESTION [SERVER]]]`.
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

given = sys.argv[1:]
picture = Path(given[0]) if given else Path(__file__).with_name("face.png")
question = given[1] if len(given) > 1 else "What is this?"
server = given[2] if len(given) > 2 else "http://127.0.0.1:8000"

url = "data:;base64," + base64.b64encode(picture.read_bytes()).decode()
parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
messages = [{"role": "user", "content": parts}]

client = OpenAI(base_url=f"{server}/v1", api_key="none")
model = client.models.list().data[0].id
answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
print(answer.choices[0].message.content)
print(answer.usage)

stream = client.chat.completions.create(model=model, messages=messages, temperature=0, stream=True)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
