"""The vocabulary in exported GGUF files: what llama.cpp does with it must give harmony's own token ids."""

import random
from itertools import pairwise

import pytest

from localoss import cli
from localoss.chat import harmony
from quant import gguf_vocabulary
from quant.errors import QuantError
from quant.gguf_vocabulary import merges_of, read_ranks
from quant.sources.gguf import GgufSource

PATH = harmony.VOCABULARY_FOLDER / "o200k_base.tiktoken"
WORDS = [
    " the", "Hello", " internationalisation", " Donaudampfschifffahrt", "12", " привет", "日本語",
    "\n\n", " naïve", "ésumé", " 😀", "((((", " quick", "zzzzzzq", " xylophonists", "ﷺ", "\u200b",
]  # fmt: skip


@pytest.fixture(scope="module")
def ranks():
    return read_ranks(PATH)


@pytest.fixture(scope="module")
def merges(ranks):
    return merges_of(ranks)


def merged(word, order):
    """Byte pair encoding as llama.cpp does it: the earliest of the merges that apply, until none does."""
    parts = [bytes([byte]) for byte in word]
    while True:
        found = [(order[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in order]
        if not found:
            return parts
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_merging_gives_the_ids_of_harmony(ranks, merges):
    order = {pair: i for i, pair in enumerate(merges)}
    for word in WORDS:
        ids = [ranks[part] for part in merged(word.encode(), order)]
        assert ids == harmony.encode_raw(word), word


def test_every_token_is_what_its_merges_give(ranks, merges):
    order = {pair: i for i, pair in enumerate(merges)}
    assert len(order) == len(merges) == len(ranks) - 256
    numbers = random.Random(0)
    for token in numbers.sample(list(ranks), 2000):
        assert merged(token, order) == [token]


def test_bytes_have_gpt2s_letters():
    assert gguf_vocabulary._visible(b" the\n\x00\xff") == "ĠtheĊĀÿ"
    assert len({gguf_vocabulary._visible(bytes([byte])) for byte in range(256)}) == 256


def test_the_template_writes_what_harmony_renders():
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment()
    environment.globals["strftime_now"] = lambda form: "2026-11-24"
    template = environment.from_string(gguf_vocabulary.CHAT_TEMPLATE)
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Why is\nthe sky blue?")]
    for instructions, effort in ((None, "medium"), ("Be brief.", "low")):
        messages = [{"role": role, "content": text} for role, text in turns]
        if instructions:
            messages.insert(0, {"role": "system", "content": instructions})
        text = template.render(messages=messages, add_generation_prompt=True, reasoning_effort=effort)
        setup = harmony.ChatSetup(effort, instructions, date="2026-11-24")
        spoken = [
            harmony.Message(role, text, "final" if role == "assistant" else None) for role, text in turns
        ]
        assert harmony.encode_raw(text) == harmony.render(setup, spoken)


class Recorder:
    """gguf's writer, as far as it notes what it is given."""

    def __init__(self):
        self.added = {}

    def __getattr__(self, name):
        return lambda value: self.added.update({name.removeprefix("add_"): value})


def test_what_a_file_is_given(merges, monkeypatch):
    monkeypatch.setattr(gguf_vocabulary, "merges_of", lambda ranks: merges)
    writer = Recorder()
    gguf_vocabulary.add_vocabulary(writer, PATH)
    texts, kinds, pairs = (writer.added[name] for name in ("token_list", "token_types", "token_merges"))
    assert len(texts) == len(kinds) == len(set(texts)) == 201_088
    assert len(pairs) == 199_742 and pairs[2] == "i n"
    assert texts[harmony.encode_raw(" the")[0]] == "Ġthe"
    for token in range(199_998, 200_019):
        assert harmony.encode_raw(texts[token]) == [token] and kinds[token] == 3
    assert set(kinds[:199_998]) == {1} and set(kinds[200_019:]) == {5}
    assert writer.added["eos_token_id"] == harmony.RETURN


def test_the_command_line_gives_it(model, merges, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setattr(gguf_vocabulary, "merges_of", lambda ranks: merges)  # four seconds' work
    assert cli.main(["export", str(model("harmony")), str(tmp_path / "out.gguf"), "--gguf"]) == 0
    content = (tmp_path / "out.gguf").read_bytes()
    assert b"gpt-4o" in content and "Ġinternational".encode() in content and b"<|channel|>final" in content
    with GgufSource(tmp_path / "out.gguf") as source:
        source.require_tensors()


def test_another_vocabulary_file_is_refused(tmp_path):
    for content in (b"IQ== 0\n", b"not base64! 0\n", b"IQ== zero\n", b"a b c\n", b"\xff\xfe"):
        (tmp_path / "v").write_bytes(content)
        with pytest.raises(QuantError, match=r"tiktoken|199,998"):
            read_ranks(tmp_path / "v")
    with pytest.raises(QuantError, match="cannot be read"):
        read_ranks(tmp_path / "none")
