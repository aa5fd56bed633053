"""Suites by name, from inspect_evals, and questions of the user's own from a file or a folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss.errors import UsageError

if TYPE_CHECKING:
    from inspect_ai import Task

_FORM = '{"question": …, "answer": …}, where wanted with "choices": [the answer among others]'
_NEEDS = "needs inspect-ai and inspect-evals: pip install 'localoss[eval]'"


def name_of(suite: str) -> str:
    """What a suite is called in tables: its name, or that of its file or folder."""
    return Path(suite).stem if is_own(suite) else suite.removeprefix("inspect_evals/").partition("@")[0]


def is_own(suite: str) -> bool:
    """Whether `suite` is a file or a folder of questions, no name."""
    return suite.endswith(".jsonl") or Path(suite).is_dir()


def task_of(suite: str) -> "Task":
    """What inspect-ai runs for `suite`: a name such as aime2025, FILE.jsonl, or a folder of such files.

    Raises: UsageError.
    """
    return own_task(Path(suite)) if is_own(suite) else _published_task(name_of(suite))


def _published_task(name: str) -> "Task":
    """The suite `name` of inspect_evals. Its data set comes from where that says, mostly the hub."""
    try:
        import inspect_evals._registry as known
        from inspect_ai import Task
    except ModuleNotFoundError as error:
        raise UsageError(f"--suite {name} {_NEEDS} ({error.name} is missing)") from None
    make = getattr(known, name, None)
    if make is None or name.startswith("_"):
        raise UsageError(
            f"inspect_evals has no suite {name!r}; take aime2024, aime2025, gpqa_diamond, healthbench, "
            "another one of its names, or FILE.jsonl"
        )
    try:
        task = make()
    except Exception as error:  # a data set that can't be had fails in as many ways as there are hosts
        reason = str(error).strip() or type(error).__name__
        raise UsageError(f"{name}: its questions can't be had: {reason.splitlines()[0][:300]}") from error
    assert isinstance(task, Task)
    return task


def own_task(path: Path) -> "Task":
    """Questions of FILE.jsonl, or of a folder's files in order, asked as they stand there.

    An answer is right if it ends with what the file says. Raises: UsageError.
    """
    try:
        from inspect_ai import Task
        from inspect_ai.dataset import MemoryDataset, Sample
        from inspect_ai.scorer import choice, match
        from inspect_ai.solver import generate, multiple_choice
    except ModuleNotFoundError as error:
        raise UsageError(f"--suite {path} {_NEEDS} ({error.name} is missing)") from None

    questions = list(read_questions(path))
    samples = [
        Sample(input=one["question"], target=_target(one), choices=one.get("choices"), id=number)
        for number, one in enumerate(questions, 1)
    ]
    kinds = {one.get("choices") is not None for one in questions}
    if len(kinds) > 1:
        raise UsageError(f"{path}: some questions have choices and some none; give them files of their own")
    dataset = MemoryDataset(samples, name=path.stem)
    if kinds == {True}:
        return Task(dataset=dataset, name=path.stem, solver=multiple_choice(cot=True), scorer=choice())
    is_number = all(_is_number(str(one["answer"])) for one in questions)
    return Task(dataset=dataset, name=path.stem, solver=generate(), scorer=match("end", numeric=is_number))


def read_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Each line's object, whole and sound. Raises: UsageError that names file and line."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    count = 0
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} can't be read: {error}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _question(line, f"{file}, line {number}")
                count += 1
    if not count:
        raise UsageError(f"{path} has no questions; each line of a .jsonl file is one: {_FORM}")


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        one = json.loads(line)
    except (ValueError, RecursionError):
        one = None
    if not isinstance(one, dict) or not isinstance(one.get("question"), str):
        raise UsageError(f"{where}: no question; a line is {_FORM}")
    if not isinstance(one.get("answer"), str | int | float) or isinstance(one["answer"], bool):
        raise UsageError(f"{where}: its answer is no text and no number; a line is {_FORM}")
    choices = one.get("choices")
    if choices is not None:
        one["answer"] = str(one["answer"])
        if not isinstance(choices, list) or not all(isinstance(c, str | int | float) for c in choices):
            raise UsageError(f"{where}: its choices are no list of texts")
        one["choices"] = [str(c) for c in choices]
        if one["choices"].count(one["answer"]) != 1 or len(choices) > 26:
            raise UsageError(f"{where}: its answer isn't one of at most 26 choices; a line is {_FORM}")
    return one


def _target(one: dict[str, Any]) -> str:
    """The answer, or the letter of the choice that is it."""
    if one.get("choices") is None:
        return str(one["answer"])
    return chr(ord("A") + one["choices"].index(one["answer"]))


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
