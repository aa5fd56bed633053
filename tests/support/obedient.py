"""A scripted engine that turns to what the mask allows where its script can't go on."""

from types import SimpleNamespace

import numpy as np

from localoss.chat import harmony
from support.scripted import ScriptedEngine

_FIRST = (harmony.RETURN, harmony.CALL, harmony.END, harmony.MESSAGE, harmony.CHANNEL, harmony.START)
_CLOSING = '"}]01'


class ObedientEngine(ScriptedEngine):
    """Says its script while that is allowed, and then comes to an end as soon as it can."""

    def generate(self, tokens, params, *, mask, progress, cancelled, sequence, checkpoints):
        self.prompts.append(list(tokens))
        self.params = params
        progress(0, len(tokens))
        script = harmony.encode_raw(self.answers[min(len(self.prompts), len(self.answers)) - 1])
        closing = [*_FIRST, *(harmony.encode_text(text)[0] for text in _CLOSING)]
        for index in range(params.max_tokens or 1000):
            allowed = mask() if mask else None
            token = script[index] if index < len(script) else harmony.RETURN
            if allowed is not None and not allowed[token]:
                script = script[:index]
                token = next((one for one in closing if allowed[one]), int(np.argmax(allowed)))
            yield SimpleNamespace(id=token, logprob=-0.5, top=self.top[: params.logprobs])
            if token in params.stop_ids:
                return

    def sequence(self, seed=None):
        sequence = super().sequence(seed)
        return sequence
