"""Make the stored logits: `transformers` on tests/support/checkpoints.py, in float32, eager.

    make golden                                   # all of them, into tests/golden/
    python tests/golden/make_golden.py short      # one of them
    python tests/golden/make_golden.py --exported    # stores nothing: `localoss export` beside the stored

Needs torch and transformers (`pip install -e '.[oracle]'`). What is stored, and why: README.md beside this.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import DynamicCache, GptOssForCausalLM, Mxfp4Config
from transformers.models.gpt_oss import modeling_gpt_oss

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support import checkpoints, naive, reduced  # noqa: E402
from support.golden_files import NAMES, read_golden  # noqa: E402

from localoss.chat import harmony  # noqa: E402
from localoss.demo.dialogues import SKILLS, held_out  # noqa: E402
from localoss.hub.bundled import WEIGHTS  # noqa: E402
from quant.convert import convert  # noqa: E402
from quant.export import export  # noqa: E402
from quant.format.manifest import Dtypes  # noqa: E402

DEMO_STRIDE = 20  # of so many positions of a dialogue, one is stored
VERSIONS = (
    f"transformers {transformers.__version__}, torch {torch.__version__}, "
    f"numpy {np.__version__}, Python {platform.python_version()}"
)


def positions_of(name: str) -> tuple[int, list[int]]:
    """(tokens of the sequence, positions whose logits are stored)."""
    if name == "far":  # the end of what `make test` runs, powers of two, and the end of the context
        powers = [position for power in (12, 13, 14, 15, 16) for position in (2**power - 1, 2**power)]
        return 131_072, [*powers[:6], *range(19_990, 20_000), *powers[6:], *range(131_048, 131_072)]
    if name == "long":  # edges of the window of 24, of the original context of 4,096, and the end
        windows = [*range(0, 60), *range(1000, 1020), *range(2040, 2060)]
        return 4310, [*windows, *range(4086, 4126), *range(4290, 4310)]
    tokens = {"short": 96, "window": 300, "wide": 300}[name]
    return tokens, list(range(tokens))


def load_reference(folder: Path, mxfp4: bool = True) -> GptOssForCausalLM:
    model = GptOssForCausalLM.from_pretrained(
        folder,
        quantization_config=Mxfp4Config(dequantize=True) if mxfp4 else None,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    check_weights(model, folder)
    return model.eval()


def check_weights(model: GptOssForCausalLM, folder: Path) -> None:
    """The reference must have seen the very weights that the checkpoint holds, in float32."""
    ours = naive.Model(folder).weights
    theirs = dict(model.named_parameters())
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    for name, parameter in theirs.items():
        assert parameter.dtype == torch.float32, (name, parameter.dtype)
        value = parameter.detach().numpy()
        if name.endswith(("gate_up_proj", "down_proj")):  # stored the other way round in memory
            value = value.swapaxes(1, 2)
        assert np.array_equal(value, ours[name]), name


def make(name: str) -> None:
    length, positions = positions_of(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoints.write_named(name, Path(temporary))
        model = load_reference(folder)
        digest = checkpoints.checkpoint_sha256(folder)
    vocab = model.config.vocab_size
    tokens = np.random.RandomState(17).randint(0, vocab, length).astype(np.int32)
    with torch.inference_mode():
        if name == "far":
            check_far(model, tokens)
        logits = (forward_far if name == "far" else forward)(model, tokens, positions)
    np.savez_compressed(
        HERE / f"{name}.npz",
        tokens=tokens.astype(np.min_scalar_type(vocab)),
        positions=np.array(positions, np.int32),
        logits=logits.astype(np.float32),
        checkpoint_sha256=digest,
        versions=VERSIONS,
    )
    print(f"{name}: {logits.shape}, standard deviation {logits.std():.3f}")


def forward(model: GptOssForCausalLM, tokens: np.ndarray, positions: list[int]) -> np.ndarray:
    """Logits (P, V) at `positions`."""
    hidden = model.model(torch.tensor(tokens.astype(np.int64))[None]).last_hidden_state
    return model.lm_head(hidden[0, positions]).numpy()


def forward_far(model: GptOssForCausalLM, tokens: np.ndarray, positions: list[int]) -> np.ndarray:
    """The same in chunks with a cache, for layers sliding, full, sliding: a whole head's scores need 68 GB.

    A stored position sees all keys and values of the full layer, but its results only of the last window, by
    the layer above. So the full layer attends where somebody sees what comes of it; elsewhere it gives zeros.
    """
    assert model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    window, cache, rows, first = model.config.sliding_window, DynamicCache(config=model.config), [], 0
    while first < len(tokens):
        seen_from = max(min(p for p in positions if p >= first) - window + 1, 0)
        is_seen = first >= seen_from
        end = min(first + 128, len(tokens)) if is_seen else min(first + 1024, seen_from)
        chunk = torch.tensor(tokens[first:end].astype(np.int64))[None]
        with full_attention(is_seen):
            hidden = model.model(chunk, past_key_values=cache, use_cache=True).last_hidden_state[0]
        rows.append(model.lm_head(hidden[[p - first for p in positions if first <= p < end]]).numpy())
        first = end
    return np.concatenate(rows)


def check_exported(name: str) -> None:
    """The checkpoint converted with nothing rounded and exported again gives the stored logits."""
    golden = read_golden(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = checkpoints.write_named(name, folder / "source")
        convert(source, folder / "model", Dtypes(attention="bf16", embedding="bf16", unembedding="bf16"))
        export(folder / "model", folder / "exported")
        model = load_reference(folder / "exported")
    with torch.inference_mode():
        logits = forward(model, np.array(golden.tokens), golden.positions)
    difference = np.abs(logits - golden.logits).max()
    print(f"{name}: exported, {difference:.1e} at most from the stored logits")
    assert difference < 1e-4


def make_demo() -> None:
    """The demo model's shipped weights in bfloat16, on dialogues that its training left out.

    Stored are the logits of the ids that it knows and of one other: all others share a row.
    """
    known = json.loads((WEIGHTS / "token_ids.json").read_text())
    columns = [*known, next(token for token in range(len(known) + 1) if token not in set(known))]
    dialogues = demo_dialogues()
    with tempfile.TemporaryDirectory() as temporary:
        model = load_reference(reduced.expand(WEIGHTS, Path(temporary)), mxfp4=False)
    with torch.inference_mode():
        hidden = [model.model(torch.tensor(tokens)[None]).last_hidden_state[0] for tokens in dialogues]
        logits = [model.lm_head(h[DEMO_STRIDE - 1 :: DEMO_STRIDE]).numpy() for h in hidden]
    unknown = np.setdiff1d(np.arange(model.config.vocab_size), known)
    assert all((rows[:, unknown] == rows[:, unknown[:1]]).all() for rows in logits)
    np.savez_compressed(
        HERE / "demo.npz",
        tokens=np.concatenate(dialogues).astype(np.int32),
        lengths=np.array([len(tokens) for tokens in dialogues], np.int32),
        stride=DEMO_STRIDE,
        columns=np.array(columns, np.int32),
        logits=np.concatenate(logits)[:, columns],
        weights_sha256=reduced.sha256_of(WEIGHTS),
        versions=VERSIONS,
    )
    print(
        f"demo: {len(dialogues)} dialogues, standard deviation {np.concatenate(logits)[:, columns].std():.3f}"
    )


def demo_dialogues() -> list[list[int]]:
    """The tokens of a few held-out dialogues of each skill, right replies included."""
    dialogues = []
    for skill in SKILLS:
        for case in held_out(skill, 3, seed=0):
            reply = [token for tokens, _ in harmony.render_reply(case.reply) for token in tokens]
            dialogues.append([*harmony.render(case.setup, case.messages), *reply])
    return dialogues


@contextmanager
def full_attention(computed: bool) -> Iterator[None]:
    """Inside, the full layers give zeros unless `computed`; keys and values go to the cache all the same."""
    whole = modeling_gpt_oss.eager_attention_forward

    def attend(module, query, *arguments, **options):
        if computed or module.sliding_window is not None:
            return whole(module, query, *arguments, **options)
        return torch.zeros_like(query.transpose(1, 2)).contiguous(), None

    modeling_gpt_oss.eager_attention_forward = attend
    try:
        yield
    finally:
        modeling_gpt_oss.eager_attention_forward = whole


def check_far(model: GptOssForCausalLM, tokens: np.ndarray) -> None:
    """The shortcut gives what the whole does, where the whole can be had."""
    tokens, positions = tokens[:3000], [0, 7, 1500, *range(2500, 2600), 2998]
    difference = forward(model, tokens, positions) - forward_far(model, tokens, positions)
    assert np.abs(difference).max() < 2e-5, np.abs(difference).max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ["short", "window", "long", "wide", "far", "demo"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--exported", action="store_true", help=f"of {', '.join(NAMES)}; default: all")
    args = parser.parse_args()
    if args.exported:
        for name in args.names or NAMES:
            check_exported(name)
        return
    for name in args.names or names:
        make_demo() if name == "demo" else make(name)


if __name__ == "__main__":
    main()
