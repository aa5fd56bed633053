"""Talk to `localoss serve demo` by OpenAI's client."""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11435"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
question = [{"role": "user", "content": "What is 37 + 48?"}]
for chunk in client.chat.completions.create(model=model, messages=question, stream=True, temperature=0):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
