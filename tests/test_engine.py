"""The engine on small checkpoints: prefill, reuse, batches, generation, cancelling, limits, options.

Whether the logits are the right ones is test_golden.py's matter; here they must not depend on how they were
come by.
"""

import subprocess
import sys
import threading

import numpy as np
import pytest
from support.golden_files import log_softmax

import localoss
from localoss.engine.loader import usable_threads
from localoss.errors import Cancelled, ContextFullError, ModelError, UsageError
from localoss.model.forward import Chunk
from localoss.model.kv_cache import KVCache

EXACT = dict(activations="f32", kv_dtype="f32")
CLOSE = 1e-4
WINDOW, RING, LAYERS = 16, 64, 3  # of "short" with chunks of 32 tokens
VOCAB = 203


@pytest.fixture(scope="module")
def load(model):
    """Load the checkpoint "short", with the given options."""

    def load(**options):
        threads = usable_threads(None)  # as many as a large model has
        usual = dict(context_tokens=256, chunk_tokens=32, threads=threads)
        return localoss.load(model("short"), **(usual | options))

    return load


@pytest.fixture(scope="module")
def engine(load):
    return load()


@pytest.fixture(scope="module")
def exact(load):
    return load(**EXACT)


def random_tokens(count, seed=0):
    return np.random.RandomState(seed).randint(0, VOCAB, count).tolist()


def ids(tokens):
    return [token.id for token in tokens]


def prefill_noting(engine, sequence, tokens, **options):
    """The logits, and how many tokens the progress callback said were done, call by call."""
    calls = []
    logits = engine.prefill(sequence, tokens, lambda done, total: calls.append((done, total)), **options)
    assert {total for _, total in calls} == {len(tokens)}
    assert sequence.tokens == list(tokens)
    return logits, [done for done, _ in calls]


class CancelAfter:
    """True from the given call on: a forward pass asks once a layer."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        return self.left < 0


# Logits


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "int8"])
def test_chunking_does_not_change_the_logits(load, kv_dtype):
    tokens = random_tokens(150)
    options = dict(activations="f32", kv_dtype=kv_dtype)
    whole = load(chunk_tokens=512, **options).logits(tokens)
    assert whole.shape == (150, VOCAB) and whole.dtype == np.float32
    for chunk_tokens in (1, 7, 64):
        logits = load(chunk_tokens=chunk_tokens, **options).logits(tokens)
        assert np.abs(logits - whole).max() <= CLOSE


def test_positions_choose_rows(exact):
    tokens = random_tokens(70)
    whole = exact.logits(tokens)
    positions = [69, 0, 31, 32, 32, 5]
    np.testing.assert_allclose(exact.logits(tokens, positions), whole[positions], atol=CLOSE)
    assert exact.logits(tokens, []).shape == (0, VOCAB)


def test_logits_are_those_of_prefill_and_decode(exact):
    tokens, sequence = random_tokens(100), exact.sequence()
    whole = exact.logits(tokens)
    for end in (40, 41, 42, 99, 100):
        assert np.abs(exact.prefill(sequence, tokens[:end]) - whole[end - 1]).max() <= CLOSE


def test_a_ragged_batch_equals_its_sequences_run_alone(exact):
    """Prefill of one, decode of another, and a short prompt, in one forward pass."""
    config, forward = exact.config, exact.model.forward

    def cache():
        return KVCache(config, 256, 32, "f32")

    histories, news = [random_tokens(n) for n in (0, 30, 9)], [random_tokens(n, 1) for n in (17, 1, 5)]
    alone, together = [], []
    for history, new in zip(histories, news, strict=True):
        caches = cache(), cache()
        for each in caches if history else ():
            forward([Chunk(history, 0, each)])
        alone.append(forward([Chunk(new, len(history), caches[0])]).copy())
        together.append(Chunk(new, len(history), caches[1]))
    np.testing.assert_allclose(forward(together), np.concatenate(alone), atol=CLOSE)
    after = [
        forward([Chunk([3], chunk.position + len(chunk.tokens), chunk.cache)]).copy() for chunk in together
    ]
    assert np.isfinite(after).all()


# What a sequence's cache is good for


def test_a_longer_conversation_runs_only_what_is_new(exact):
    tokens, sequence = random_tokens(120), exact.sequence()
    assert prefill_noting(exact, sequence, tokens[:50])[1] == [0, 32, 50]
    logits, done = prefill_noting(exact, sequence, tokens)
    assert done == [50, 82, 114, 120]
    assert np.abs(logits - exact.logits(tokens, [119])).max() <= CLOSE
    assert prefill_noting(exact, sequence, tokens)[1] == [119, 120], "for its logits"


def test_generation_is_not_run_again(exact):
    prompt, sequence = random_tokens(40), exact.sequence()
    answer = ids(exact.generate(prompt, 10, temperature=0, sequence=sequence, stop_ids=()))
    assert sequence.tokens == prompt + answer[:-1]  # the last was chosen, but not run
    logits, done = prefill_noting(exact, sequence, [*prompt, *answer, 7])
    assert done == [49, 51]
    assert np.abs(logits - exact.logits([*prompt, *answer, 7], [50])).max() <= CLOSE


@pytest.mark.parametrize(
    ("common", "kept"), [(149, 149), (120, 120), (150 - RING + WINDOW - 1, 101), (100, 0), (3, 0), (0, 0)]
)
def test_stepping_back(exact, common, kept):
    """Within the ring the common prefix is kept, beyond it everything is run anew."""
    sequence = exact.sequence()
    exact.prefill(sequence, random_tokens(150))
    other = [*random_tokens(150)[:common], *random_tokens(45, seed=1)]
    logits, done = prefill_noting(exact, sequence, other)
    assert done[0] == kept
    assert np.abs(logits - exact.logits(other, [len(other) - 1])).max() <= CLOSE


@pytest.mark.parametrize("seed", range(4))
def test_any_way_to_a_conversation_gives_its_logits(exact, seed):
    """Continued, cut back, replaced, and cancelled between any two layers; one token before the first."""
    rng, sequence, tokens = np.random.RandomState(seed), exact.sequence(), []
    for _ in range(25):
        keep = int(rng.choice([len(tokens), rng.randint(len(tokens) + 1)]))
        tokens = [*tokens[:keep], *rng.randint(0, VOCAB, rng.randint(1, 50)).tolist()][:256]
        if rng.random_sample() < 0.4:
            layers = rng.randint(LAYERS) if len(tokens) > keep + 1 else 0
            with pytest.raises(Cancelled):
                exact.prefill(sequence, tokens, cancelled=CancelAfter(layers))
        else:
            logits = exact.prefill(sequence, tokens)
            assert np.abs(logits - exact.logits(tokens, [len(tokens) - 1])).max() <= CLOSE


def test_cancelled_in_prefill(exact):
    tokens, sequence = random_tokens(100), exact.sequence()
    with pytest.raises(Cancelled, match=r"^[^\n]+$"):
        exact.prefill(sequence, tokens, cancelled=CancelAfter(2 * LAYERS + 1))
    assert sequence.tokens == tokens[:64], "two chunks were finished"
    logits, done = prefill_noting(exact, sequence, tokens)
    assert done == [64, 96, 100]
    assert np.abs(logits - exact.logits(tokens, [99])).max() <= CLOSE


def test_cancelled_in_a_chunk_that_overwrote_the_ring(exact):
    """Layer 0's ring has lost what layer 2's still has: stepping back must not believe in it."""
    tokens, sequence = random_tokens(150), exact.sequence()
    exact.prefill(sequence, tokens[:100])
    with pytest.raises(Cancelled):
        exact.prefill(sequence, tokens[:132], cancelled=CancelAfter(1))
    assert sequence.tokens == tokens[:100]
    other = [*tokens[:60], 1, 2, 3]
    assert np.abs(exact.prefill(sequence, other) - exact.logits(other, [62])).max() <= CLOSE


def test_cancelled_in_generation(engine):
    prompt, sequence, made = random_tokens(20), engine.sequence(), []
    with pytest.raises(Cancelled):
        for token in engine.generate(
            prompt, temperature=0, sequence=sequence, stop_ids=(), cancelled=lambda: len(made) == 5
        ):
            made.append(token.id)
    assert sequence.tokens == prompt + made[:-1]
    made += ids(engine.generate([*prompt, *made], 5, temperature=0, sequence=sequence, stop_ids=()))
    assert made == ids(engine.generate(prompt, 10, temperature=0, stop_ids=()))


# Generation


@pytest.mark.parametrize("options", [{}, EXACT], ids=["default", "exact"])
def test_greedy_follows_the_logits(load, options):
    engine, prompt = load(**options), random_tokens(40)
    made = list(engine.generate(prompt, 20, temperature=0, stop_ids=()))
    rows = log_softmax(engine.logits([*prompt, *ids(made)])[len(prompt) - 1 : -1])
    close = CLOSE if options else 0.1  # int8 activations are rounded otherwise in another chunking
    for token, row in zip(made, rows, strict=True):
        assert row[token.id] >= row.max() - close
        assert token.logprob == pytest.approx(row[token.id], abs=close)


def test_seeds_and_sequences(engine):
    def answer(**options):
        return ids(engine.generate(random_tokens(9), 12, stop_ids=(), **options))

    assert answer(seed=5) == answer(seed=5) == answer(sequence=engine.sequence(5)) != answer(seed=6)
    sequence = engine.sequence(5)
    first, second = answer(sequence=sequence), answer(sequence=sequence)
    assert first != second, "a sequence's random state goes on"
    assert answer(sequence=sequence, seed=5) == first


def test_stops_and_limits(engine):
    prompt = random_tokens(9)
    made = ids(engine.generate(prompt, 12, temperature=0, stop_ids=()))
    assert len(made) == 12
    stop = made[4]
    assert ids(engine.generate(prompt, 12, temperature=0, stop_ids=(stop,))) == made[: made.index(stop) + 1]
    assert ids(engine.generate(prompt, 0)) == []


def test_a_mask_is_asked_before_each_token(engine):
    masks = [np.arange(VOCAB) == 7, None, np.arange(VOCAB) % 2, np.arange(VOCAB) > 200]
    left = iter(masks)
    prompt = random_tokens(9)
    made = ids(engine.generate(prompt, 4, temperature=0, stop_ids=(), mask=lambda: next(left)))
    assert made[0] == 7 and made[2] % 2 and made[3] > 200
    assert made[1] == engine.logits([*prompt, 7])[-1].argmax()


def test_two_engines_and_another_thread(load, model, engine):
    """Loaded side by side and used in turn, from whatever thread."""
    other, prompt = localoss.load(model("window"), context_tokens=100), random_tokens(30)
    alone = [ids(each.generate(prompt, 8, seed=1, stop_ids=())) for each in (engine, other)]
    turns = [each.generate(prompt, 8, seed=1, stop_ids=()) for each in (engine, other)]
    mixed = list(zip(*turns, strict=True))
    assert [[pair[i].id for pair in mixed] for i in (0, 1)] == alone
    found = []

    def work():
        found.append(ids(engine.generate(prompt, 8, seed=1, stop_ids=())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == alone[:1]


# Limits and options


def test_a_full_context(load):
    engine = load(context_tokens=70)
    with pytest.raises(
        ContextFullError, match=r"^the prompt has 71 tokens and the context holds 70; [^\n]+$"
    ):
        engine.logits(random_tokens(71))
    sequence, prompt, made = engine.sequence(), random_tokens(60), []
    with pytest.raises(ContextFullError, match=r"^the context is full: 71 tokens, it holds 70; [^\n]+$"):
        for token in engine.generate(prompt, temperature=0, sequence=sequence, stop_ids=()):
            made.append(token.id)
    assert len(made) == 11 and sequence.tokens == prompt + made[:-1]
    with pytest.raises(ContextFullError):
        engine.prefill(sequence, [*sequence.tokens, 1])
    assert len(sequence.tokens) == 70, "what is held stays"
    engine.prefill(sequence, prompt[:20])


@pytest.mark.parametrize("tokens", [[], [3, -1], [VOCAB], [5, 200_002]])
def test_bad_tokens(engine, tokens):
    for call in (engine.logits, lambda tokens: list(engine.generate(tokens))):
        with pytest.raises(UsageError, match=r"^[^\n]+$"):
            call(tokens)


@pytest.mark.parametrize("positions", [[10], [0, -1]])
def test_bad_positions(engine, positions):
    with pytest.raises(UsageError, match="positions must be within the 10 tokens"):
        engine.logits(random_tokens(10), positions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kv_dtype="q8"), "kv_dtype is 'q8'; use f16, f32, int8"),
        (dict(activations="f16"), "activations is 'f16'; use int8"),
        (dict(threads=0), "threads is 0; this machine can run 1 to"),
        (dict(threads=10_000), "threads is 10000; this machine can run 1 to"),
        (dict(context_tokens=0), "context_tokens is 0; this model takes 1 to 131,072"),
        (dict(context_tokens=131_073), "context_tokens is 131,073; this model takes 1 to 131,072"),
        (dict(chunk_tokens=0), "chunk_tokens is 0; use 1 or more"),
        (dict(gpu_layers=99), "gpu_layers is 99; use 0 to 3, all or auto"),
        (dict(gpu_layers="some"), "gpu_layers is some; use 0 to 3, all or auto"),
        (dict(memory_limit=1_000_000), "and 1 MB are there for it; free some memory, or take a smaller"),
    ],
    ids=str,
)
def test_bad_options(load, options, message):
    with pytest.raises(UsageError) as raised:
        load(**options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [dict(max_tokens=-1), dict(temperature=-1), dict(top_p=2)], ids=str)
def test_bad_generation_options(engine, options):
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        list(engine.generate([1], **options))


def test_no_such_model(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        localoss.load(tmp_path / "nothing")


# Compiling

USE_ENGINE = """
import sys
import localoss
import numpy as np

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("localoss.kernels")]
    kernels = [value for module in modules for value in vars(module).values() if hasattr(value, "signatures")]
    return {(kernel.__name__, types) for kernel in kernels for types in kernel.signatures}

def use(folder, **options):
    engine = localoss.load(folder, context_tokens=256, chunk_tokens=32, **options)
    ready = compiled()
    sequence, prompt, mask = engine.sequence(1), list(range(70)), np.ones(engine.config.vocab, np.uint8)
    engine.logits(prompt, [3, 50])
    for how in (dict(temperature=0), dict(top_k=9, top_p=0.8, min_p=0.1), dict(mask=lambda: mask)):
        prompt += [token.id for token in engine.generate(prompt, 3, sequence=sequence, **how)]
    assert len(ready) > 8 and compiled() == ready, f"compiled in use: {compiled() - ready}"

for folder in sys.argv[1:]:
    use(folder)
for folder in sys.argv[1:]:
    use(folder, activations="f32", kv_dtype="f32")
"""


def test_nothing_is_compiled_after_loading(model):
    folders = [
        model("short"),
        model("window", attention="int4", unembedding="int4"),
        model("long", attention="bf16", embedding="bf16", unembedding="bf16"),
    ]
    subprocess.run([sys.executable, "-c", USE_ENGINE, *map(str, folders)], check=True)


def test_a_tiny_model_has_one_thread(model):
    """Its threads would take longer to meet than to multiply."""
    assert localoss.load(model("short"), context_tokens=64).threads == 1
