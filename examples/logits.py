"""Read the model's own numbers: the likeliest next tokens of a prompt."""

import sys

import numpy as np

import localoss
from localoss.chat import harmony

engine = localoss.load(sys.argv[1] if len(sys.argv) > 1 else "demo", context_tokens=1024)
tokens = harmony.render(harmony.ChatSetup(effort="low"), [harmony.Message("user", "What is 37 + 48?")])
(logits,) = engine.logits(tokens, [len(tokens) - 1])  # (1, vocabulary), float32
for token in np.argsort(logits)[:-6:-1]:
    print(f"{logits[token]:8.3f}  {harmony.token_bytes(int(token))!r}")
