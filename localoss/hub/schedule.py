"""In which order shards are fetched, and what can be let go when: published shards cut through layers.

After each shard every file of the model directory that can be written is; what later files need of the shard
is kept in a small file of its own, and the shard goes. So the disk never holds two models.
"""

from dataclasses import dataclass

from quant.format.hf_names import EMBEDDING, FINAL_NORM, UNEMBEDDING, layer_prefix
from quant.format.layout import VOCABULARY_FILE, layer_file


@dataclass(frozen=True)
class Step:
    """Fetch `shard`, write `outputs`, keep tensors `keep` of the shard for later, and let it go.

    Without a shard: everything that `outputs` need is on this disk already.
    """

    shard: str | None
    outputs: list[str]
    keep: list[str]


def tensors_of_outputs(tensors: list[str], layers: int) -> dict[str, list[str]]:
    """The published tensors that each weight file of a model directory is made of."""
    by_layer: dict[str, list[str]] = {layer_prefix(layer): [] for layer in range(layers)}
    for name in tensors:
        prefix = ".".join(name.split(".")[:3]) + "."
        if prefix in by_layer:
            by_layer[prefix].append(name)
    needs = {layer_file(layer): by_layer[layer_prefix(layer)] for layer in range(layers)}
    # Each with what MLX puts beside it; tied embeddings have no unembedding.
    modules = {name.removesuffix("weight") for name in (EMBEDDING, FINAL_NORM, UNEMBEDDING)}
    return needs | {VOCABULARY_FILE: [name for name in tensors if f"{name.rpartition('.')[0]}." in modules]}


def schedule(
    needs: dict[str, list[str]], shard_of: dict[str, str], kept: set[str], all_shards: bool
) -> list[Step]:
    """The steps that write every file of `needs`, each from these tensors, which lie in shards `shard_of`.

    Tensors `kept` are on this disk already. `all_shards`: fetch those too that no file needs any more.
    """
    wanted = {shard_of[tensor] for tensors in needs.values() for tensor in tensors if tensor not in kept}
    shards = sorted(set(shard_of.values()) if all_shards else wanted)
    left, here = dict(needs), set(kept)
    steps: list[Step] = []
    for shard in [None, *shards]:
        here |= {tensor for tensor, place in shard_of.items() if place == shard}
        outputs = [output for output, tensors in left.items() if here.issuperset(tensors)]
        outputs.sort(key=lambda output: output != VOCABULARY_FILE)  # it frees the most of what was kept
        left = {output: tensors for output, tensors in left.items() if output not in outputs}
        later = {tensor for tensors in left.values() for tensor in tensors}
        keep = sorted(tensor for tensor in later if shard_of[tensor] == shard and tensor not in kept)
        if shard or outputs:
            steps.append(Step(shard, outputs, keep))
    return steps


def peak_bytes(
    steps: list[Step],
    needs: dict[str, list[str]],
    output_bytes: dict[str, int],
    shard_bytes: dict[str, int],
    tensor_bytes: dict[str, int],
    keeps_shards: bool,
) -> int:
    """The most bytes that `steps` add to what is on the disk before the first of them.

    `shard_bytes` are those still to be fetched of each shard.
    """
    used = most = 0
    rests: dict[str, list[str]] = {}  # shard -> what is kept of it, in one file
    left = [output for step in steps for output in step.outputs]
    for step in steps:
        size = shard_bytes[step.shard] if step.shard else 0
        used += size
        for output in step.outputs:
            used += output_bytes[output]
            most = max(most, used)
            left.remove(output)
            later = {tensor for output in left for tensor in needs[output]}
            for shard in [shard for shard, kept in rests.items() if not later.intersection(kept)]:
                used -= sum(tensor_bytes[tensor] for tensor in rests.pop(shard))
        if step.shard and not keeps_shards:
            rests[step.shard] = step.keep
            used += sum(tensor_bytes[tensor] for tensor in step.keep)
            most = max(most, used)
            used -= size
    return max(most, used)
