#!/usr/bin/env python3
"""Make a model of as many layers as gpt-oss-120b has out of one of a few, on a disk that holds one copy.

    python benchmarks/more_layers.py MODEL OUT --layers 36

MODEL's layers follow each other again and again, each in a file of its own, as an expert cache and a disk see
them; what such a model says is noise. The first ones are links to MODEL's. A checkpoint of all 36 layers and
the folder made of it would take 130 GB, this takes 63.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=36)
    args = parser.parse_args()
    manifest = json.loads((args.model / "localoss.json").read_text())
    there = sorted(name for name in manifest["files"] if name.startswith("layer-"))
    files = {f"layer-{n:03}.safetensors": there[n % len(there)] for n in range(args.layers)}
    files |= {name: name for name in manifest["files"] if name not in there and name != "config.json"}
    copies = [source for name, source in files.items() if name != source]  # the others are linked
    needed = sum(manifest["files"][source]["bytes"] for source in copies)
    args.out.mkdir(parents=True)
    if (free := shutil.disk_usage(args.out).free) < needed:
        sys.exit(
            f"{args.out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free; give fewer --layers"
        )
    for name, source in files.items():
        if name == source:
            (args.out / name).hardlink_to(args.model / source)
        else:
            shutil.copyfile(args.model / source, args.out / name)
    config = json.loads((args.model / "config.json").read_text())
    kinds = config["layer_types"]
    config |= {
        "num_hidden_layers": args.layers,
        "layer_types": [kinds[n % len(kinds)] for n in range(args.layers)],
    }
    text = json.dumps(config, indent=2).encode()
    (args.out / "config.json").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    manifest["source"] |= {"name": f"{args.model.name} x {args.layers} layers", "config_sha256": digest}
    manifest["files"] = {name: manifest["files"][source] for name, source in files.items()}
    manifest["files"]["config.json"] = {"bytes": len(text), "sha256": digest}
    (args.out / "localoss.json").write_text(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    main()
