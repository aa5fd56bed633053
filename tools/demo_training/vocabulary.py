"""The tokens that the demo model knows: what its dialogues are written in, and common words."""

import itertools
import string

from localoss.chat import harmony
from localoss.demo.dialogues import training, words
from localoss.demo.dialogues.topics import TOPICS

_CONTROL = (
    harmony.END_OF_TEXT,
    harmony.RETURN,
    harmony.CONSTRAIN,
    harmony.CHANNEL,
    harmony.START,
    harmony.END,
    harmony.MESSAGE,
    harmony.CALL,
)


def collect(seed: int, sampled: int) -> list[int]:
    """Sorted ids: all of `sampled` dialogues, numbers to 999, single characters and common words.

    A word that none of the dialogues has may stay unknown.
    """
    known = set(_CONTROL)
    for case in itertools.islice(training(seed), sampled):
        known.update(harmony.render(case.setup, case.messages))
        known.update(token for tokens, _ in harmony.render_reply(case.reply) for token in tokens)
    for text in _texts():
        tokens = harmony.encode_raw(text)
        if len(tokens) == 1:
            known.update(tokens)
    return sorted(known)


def _texts() -> list[str]:
    """Numbers, characters and words, as they stand at the start and after a blank."""
    plain = [*map(str, range(1000)), *(f"{i:02d}" for i in range(100)), *string.printable]
    plain += [word for text in (*words.SUBJECTS, *words.PLACES, *_questions()) for word in text.split()]
    plain += [word.capitalize() for word in words.PLACES]
    return [*plain, *(f" {text}" for text in (*plain, *words.COMMON))]


def _questions() -> list[str]:
    return [text for topic in TOPICS.values() for text in (*topic.goals, *topic.names, *topic.lines)]
