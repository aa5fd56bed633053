"""localoss with an engine that does what the user's message says: `python player.py serve demo --port 0`.

`@say WORDS@` in the newest user's message is answered with those words, `@shout words@` with them in
capitals, which no echo of the prompt has. `@call NAME {"a": 1}@` makes a call of the function NAME, and after
its result the answer quotes what the result says; so does `@run TOOL INPUT@` with a tool of the server's,
python or the browser. Anything else is greeted. Where the rules of an answer
allow no such thing, the answer ends as soon as it can.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.obedient import ObedientEngine
from wire import Wire

from localoss.chat import harmony

_USER, _START = "<|start|>user<|message|>", "<|start|>assistant"
_COMMENT = r"to=assistant<\|channel\|>(?:commentary|analysis)<\|message\|>(.*?)<\|end\|>"
_OBSERVED = r"<\|start\|>user<\|message\|>Observation:\s*(.*?)<\|end\|>"  # as smolagents gives results
_RESULT = re.compile(rf"<\|start\|>(?:functions\.|python|browser)[^<]*{_COMMENT}|{_OBSERVED}", re.S)
_ORDER = re.compile(r"@(say|shout|call|run) (.*?)@(?!\w)", re.S)
_QUOTED_CHARS = 300
_LAST_CALL = "type final_answer = "


def answer_to(prompt: str) -> str:
    """What is said to a conversation, in harmony's form."""
    orders = [one for one in _ORDER.finditer(prompt) if prompt.rfind(_USER, 0, one.start()) >= 0]
    if not orders:
        return _final("Hello from localoss.")
    kind, words = orders[-1].groups()
    if kind not in ("call", "run"):
        return _final(words.upper() if kind == "shout" else words)
    if results := _RESULT.findall(prompt, orders[-1].end()):
        said = f"The tool said: {''.join(results[-1])[:_QUOTED_CHARS]}"
        # Where the answer has to be a call, as smolagents has it, one is there for it.
        return _call("final_answer", json.dumps({"answer": said})) if _LAST_CALL in prompt else _final(said)
    name, _, arguments = words.partition(" ")
    if kind == "run":
        return f"<|channel|>analysis to={name} code<|message|>{arguments}<|call|>"
    return _call(
        name, arguments if '\\"' not in arguments else arguments.replace('\\"', '"')
    )  # opencode quotes


def _call(name: str, arguments: str) -> str:
    thought = "<|channel|>analysis<|message|>I need the tool.<|end|>" + _START
    called = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    return thought + called


def _final(text: str) -> str:
    thought = "<|channel|>analysis<|message|>Simple.<|end|>" + _START
    return f"{thought}<|channel|>final<|message|>{text}<|return|>"


class Player(ObedientEngine):
    """Plays the model."""

    def generate(self, tokens, params, **options):
        self.answers = [answer_to(harmony.encoding().decode(tokens))]
        self.prompts.clear()
        yield from super().generate(tokens, params, **options)


def main() -> int:
    import localoss
    from localoss import cli
    from localoss.server import run

    build_app, file = run.build_app, os.environ["WIRE"]

    def watched(*arguments, **options):
        app = build_app(*arguments, **options)
        app.add_middleware(Wire, file=Path(file))
        return app

    run.build_app = watched
    localoss.load = lambda folder, options, listener: Player(context_tokens=131_072)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
