"""Measure llama.cpp against the stored logits: its KL divergence at every stored position, into peer.json.

    python tests/golden/make_peer.py --tools DIR --python VENV/bin/python
    python tests/golden/make_peer.py --tools DIR --python VENV/bin/python --exported    # beside the stored

With --exported llama.cpp runs what `localoss quantize` and `localoss export --gguf` make of the checkpoints.

DIR holds hf_to_gguf.py (experts stay MXFP4, other matrices become Q8_0) and peer_llamacpp.py; VENV has the
packages that they need, xllamacpp and gguf. What is stored, and why: README.md beside this.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from support import checkpoints  # noqa: E402
from support.golden_files import NAMES, kl_divergence, read_golden  # noqa: E402

from quant.convert import convert  # noqa: E402
from quant.export_gguf import export_gguf  # noqa: E402


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[1]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def peer_distribution(name: str, tools: Path, python: Path, folder: Path, exported: bool) -> np.ndarray:
    """llama.cpp's log-probabilities (P, V) at the golden's positions."""
    golden = read_golden(name)
    # The same weights, with the rotary embedding written as hf_to_gguf.py reads it.
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS[name] | {"rope": "rope_scaling"})
    checkpoints.write_checkpoint(folder / name, config, seed=checkpoints.seed_of(name))
    (folder / "tokens.json").write_text(json.dumps(golden.tokens))
    if exported:
        convert(folder / name, folder / "model")
        export_gguf(folder / "model", folder / "model.gguf")
    else:
        run(python, tools / "hf_to_gguf.py", folder / name, folder / "model.gguf")
    positions = ",".join(str(position) for position in golden.positions)
    options = ["--positions", positions, "--vocabulary", config["vocab_size"], "--threads", "2"]
    out = folder / "out.npz"
    peer = [python, tools / "peer_llamacpp.py", folder / "model.gguf", "--tokens", folder / "tokens.json"]
    run(*peer, *options, "--distribution", out)
    with np.load(out) as stored:
        log_probabilities = stored["log_probabilities"]
    # The server leaves out what it doesn't list: every token must be there, or the divergence is wrong.
    mass = np.exp(log_probabilities.astype(np.float64)).sum(axis=1)
    assert np.abs(mass - 1).max() < 1e-4, (name, mass.min(), mass.max())
    return log_probabilities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True, help="of a venv with xllamacpp and gguf")
    parser.add_argument("--exported", action="store_true", help="our export instead; stores nothing")
    args = parser.parse_args()
    version = "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in ('xllamacpp', 'gguf')))"
    stored: dict = {"versions": run(args.python, "-c", version).strip(), "checkpoints": {}}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            log_probabilities = peer_distribution(name, args.tools, args.python, Path(folder), args.exported)
        golden = read_golden(name)
        divergence = kl_divergence(golden.logits, log_probabilities)
        stored["checkpoints"][name] = {
            "checkpoint_sha256": golden.checkpoint_sha256,
            "positions": len(divergence),
            "mean_kl": float(divergence.mean()),
            "median_kl": float(np.median(divergence)),
            "max_kl": float(divergence.max()),
        }
        print(name, stored["checkpoints"][name], flush=True)
    if args.exported:
        before = json.loads((HERE / "peer.json").read_text())["checkpoints"]
        for name, found in stored["checkpoints"].items():
            ratio = found["mean_kl"] / before[name]["mean_kl"]
            print(f"{name}: {found['mean_kl']:.5f} beside {before[name]['mean_kl']:.5f}, {ratio:.2f}")
        return
    (HERE / "peer.json").write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
