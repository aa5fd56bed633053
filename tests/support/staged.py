"""A scripted engine whose answers go by the last question, however often it was broken off before."""

import re

from localoss.chat import harmony
from support.scripted import ScriptedEngine

_QUESTION = re.compile(r"<\|start\|>user<\|message\|>(\w+)(.*?)<\|end\|>", re.S)
_CALL = re.compile(r"<\|start\|>assistant(?:<\|channel\|>\w+)? to=([\w.]+)")
_RESULT = re.compile(r"<\|start\|>([\w.]+) to=assistant")


class StagedEngine(ScriptedEngine):
    """answers: by a question's first word those to it and to the results of the calls that they make.

    REST in an answer stands for what follows the question's first word.
    """

    def generate(self, tokens, params, **options):
        prompt = harmony.encoding().decode(tokens)
        question = list(_QUESTION.finditer(prompt))[-1]
        calls, results = _CALL.findall(prompt), _RESULT.findall(prompt)
        assert calls == results, f"calls without their results: {calls}, {results}"
        since = prompt[question.end() :]
        by_word, self.answers = self.answers, self.answers[question[1]]
        place = min(len(_RESULT.findall(since)), len(self.answers) - 1)
        self.answers = [self.answers[place].replace("REST", question[2].strip())]
        try:
            yield from super().generate(tokens, params, **options)
        finally:
            self.answers = by_word
