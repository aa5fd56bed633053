"""What the page sends."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from localoss.server.core.schemas import Items, Seed

MAX_FILES = 100
_Title = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SentFile(Strict):
    """A file's text."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    text: str


class Sampling(Strict):
    """How tokens are drawn; what is left out is as everywhere."""

    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Seed = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    think_budget: Annotated[int | None, Field(ge=0)] = None


class Setup(Strict):
    """What stands before a conversation's messages. None: as it is."""

    effort: Literal["low", "medium", "high"] | None = None
    instructions: Annotated[str | None, Field(description="The empty text takes them out.")] = None


class Turn(Strict):
    """A message, another answer to one, or another message in place of one.

    session: None begins one. revision: of the conversation that the user saw; it is refused if there is a
    newer one. exchange: which message is meant, from 0; None for a new one. text: None for another answer.
    kept_files: numbers of the files that stay with an edited message. trim: leave out the oldest messages.
    """

    session: Annotated[str | None, Field(max_length=64)] = None
    revision: Annotated[str | None, Field(max_length=64)] = None
    exchange: Annotated[int | None, Field(ge=0)] = None
    text: str | None = None
    files: Annotated[Items[SentFile], Field(max_length=MAX_FILES)] = []
    kept_files: Annotated[Items[int], Field(max_length=MAX_FILES)] = []
    setup: Setup = Setup()
    sampling: Sampling = Sampling()
    trim: bool = False


class Change(Strict):
    """What a conversation is called, and its setup."""

    title: _Title | None = None
    setup: Setup = Setup()
    revision: Annotated[str | None, Field(max_length=64)] = None


class Way(Strict):
    """Which way to go on with, where several part."""

    revision: Annotated[str, Field(max_length=64)]
    exchange: Annotated[int, Field(ge=0)]
    is_answer: bool
    rank: Annotated[int, Field(ge=0)]


class Edit(Strict):
    """Other words in the place of an answer."""

    revision: Annotated[str, Field(max_length=64)]
    exchange: Annotated[int, Field(ge=0)]
    text: Annotated[str, Field(min_length=1)]


class Document(Strict):
    """A file that goes with a message. data: its bytes, in Base64."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    data: str


class Approval(Strict):
    """What is said to a call that waits for it. id: the question's."""

    id: Annotated[str, Field(max_length=64)]
    said: Literal["yes", "no", "always", "never"]


class Nothing(Strict):
    """An empty object."""
