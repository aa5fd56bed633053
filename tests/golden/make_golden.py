"""Make the stored logits: `transformers` on the checkpoints of tests/checkpoints.py, in float32, eager.

    make golden                                   # all of them, into tests/golden/
    python tests/golden/make_golden.py short      # one of them

Needs torch and transformers (`pip install -e '.[oracle]'`). What is stored, and why: README.md beside this.
"""

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import GptOssForCausalLM, Mxfp4Config

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import checkpoints  # noqa: E402
import naive  # noqa: E402


def positions_of(name: str) -> tuple[int, list[int]]:
    """(tokens of the sequence, positions whose logits are stored)."""
    if name == "long":  # edges of the window of 24, of the original context of 4,096, and the end
        windows = [*range(0, 60), *range(1000, 1020), *range(2040, 2060)]
        return 4310, [*windows, *range(4086, 4126), *range(4290, 4310)]
    tokens = {"short": 96, "window": 300, "wide": 300}[name]
    return tokens, list(range(tokens))


def load_reference(folder: Path) -> GptOssForCausalLM:
    model = GptOssForCausalLM.from_pretrained(
        folder,
        quantization_config=Mxfp4Config(dequantize=True),
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
        hidden = model.model(torch.tensor(tokens.astype(np.int64))[None]).last_hidden_state
        logits = model.lm_head(hidden[0, positions]).numpy()
    np.savez_compressed(
        HERE / f"{name}.npz",
        tokens=tokens,
        positions=np.array(positions, np.int32),
        logits=logits.astype(np.float32),
        checkpoint_sha256=digest,
        versions=f"transformers {transformers.__version__}, torch {torch.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}",
    )
    print(f"{name}: {logits.shape}, standard deviation {logits.std():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ["short", "window", "long", "wide"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    for name in parser.parse_args().names or names:
        make(name)


if __name__ == "__main__":
    main()
