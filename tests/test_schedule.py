"""In which order shards come and what is kept of them, on shards cut anywhere."""

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localoss.hub.registry import known_models
from localoss.hub.schedule import Step, peak_bytes, schedule, tensors_of_outputs
from quant.format.hf_names import block_shapes, float_shapes
from quant.format.layout import VOCABULARY_FILE, layer_file, layer_specs, vocabulary_specs
from quant.format.writer import file_bytes


def published(name, shard_count):
    """Bytes of each tensor of a known model, and its shard if tensors are sorted by name and cut evenly."""
    config = known_models()[name].config
    sizes = {tensor: 2 * prod(shape) for tensor, shape in float_shapes(config).items()}
    for layer in range(config.layers):
        sizes |= {tensor: prod(shape) for tensor, shape in block_shapes(config, layer).items()}
    shard_of, before = {}, 0
    for tensor in sorted(sizes):
        shard_of[tensor] = f"shard-{before * shard_count // sum(sizes.values()):02d}"
        before += sizes[tensor]
    return config, sizes, shard_of


@pytest.mark.parametrize(
    ("name", "shards", "most_gb"), [("gpt-oss-20b", 3, 16.5), ("gpt-oss-120b", 15, 67.0)]
)
def test_the_disk_that_a_known_model_takes(name, shards, most_gb):
    """The figures of docs/decisions.md; with --keep-source it is the model and the checkpoint."""
    config, sizes, shard_of = published(name, shards)
    needs = tensors_of_outputs(list(sizes), config.layers)
    outputs = {
        layer_file(layer): file_bytes(layer_specs(config, "int8", "mxfp4")) for layer in range(config.layers)
    }
    outputs[VOCABULARY_FILE] = file_bytes(vocabulary_specs(config, "int8", "int8"))
    shard_bytes = {
        shard: sum(sizes[tensor] for tensor in sizes if shard_of[tensor] == shard)
        for shard in set(shard_of.values())
    }
    for keeps, expected in ((False, most_gb * 1e9), (True, sum(outputs.values()) + sum(sizes.values()))):
        steps = schedule(needs, shard_of, set(), keeps)
        most = peak_bytes(steps, needs, outputs, shard_bytes, sizes, keeps)
        assert most == pytest.approx(expected, rel=0.005)
        assert sorted(output for step in steps for output in step.outputs) == sorted(needs)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_file_is_written_once_from_what_is_there(data):
    """Any cut, any shards already kept from, any outputs already written."""
    layers = data.draw(st.integers(1, 4))
    tensors = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    tensors += [f"model.layers.{layer}.{name}" for layer in range(layers) for name in "abc"]
    shard_of = {tensor: f"s{data.draw(st.integers(0, 3))}" for tensor in tensors}
    needs = tensors_of_outputs(tensors, layers)
    left = {name: needs[name] for name in data.draw(st.sets(st.sampled_from(sorted(needs)), min_size=1))}
    kept = data.draw(st.sets(st.sampled_from(tensors)))
    there, written = set(kept), []
    steps = schedule(left, shard_of, kept, all_shards=False)
    for step in steps:
        of_shard = {tensor for tensor in tensors if shard_of[tensor] == step.shard}
        there |= of_shard
        for output in step.outputs:
            assert there.issuperset(needs[output])
            written.append(output)
        there = there - of_shard | set(step.keep) | kept
        assert set(step.keep) <= of_shard - kept
    assert sorted(written) == sorted(left)
    shards = [step.shard for step in steps if step.shard]
    assert len(set(shards)) == len(shards)
    assert all(
        any(shard_of[t] == shard and t not in kept for name in left for t in needs[name]) for shard in shards
    )


def test_what_is_on_the_disk_needs_no_shard():
    tensors = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.0.a"]
    needs = tensors_of_outputs(tensors, 1)
    steps = schedule(needs, dict.fromkeys(tensors, "s"), set(tensors), all_shards=False)
    assert steps == [Step(None, [VOCABULARY_FILE, layer_file(0)], [])]
