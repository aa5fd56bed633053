"""How large a model is on the disk, from the architecture and the number formats alone."""

from dataclasses import dataclass
from math import prod

from quant.format.config import ModelConfig
from quant.format.hf_names import block_shapes, float_shapes
from quant.format.layout import layer_specs, vocabulary_specs
from quant.format.manifest import Dtypes
from quant.format.writer import file_bytes, spec_bytes


@dataclass(frozen=True)
class ExpectedSizes:
    """What follows from an architecture published with MXFP4 experts and bfloat16 for the rest.

    `download_bytes` are its tensors as published, `model_bytes` the files of the model directory.
    """

    download_bytes: int
    model_bytes: int


def expected_sizes(config: ModelConfig, dtypes: Dtypes | None = None) -> ExpectedSizes:
    floats, blocks = float_shapes(config), [block_shapes(config, layer) for layer in range(config.layers)]
    download_bytes = 2 * sum(map(prod, floats.values()))
    download_bytes += sum(prod(shape) for shapes in blocks for shape in shapes.values())
    dtypes = dtypes or Dtypes()
    layer = layer_specs(config, dtypes.attention, dtypes.experts)
    vocabulary = vocabulary_specs(config, dtypes.embedding, dtypes.unembedding)
    return ExpectedSizes(download_bytes, config.layers * file_bytes(layer) + file_bytes(vocabulary))


def class_bytes(config: ModelConfig, dtypes: Dtypes) -> dict[str, int]:
    """Bytes of each class of weights in a model directory; headers and padding of its files are left out."""
    layer = {
        name: spec_bytes(spec) for name, spec in layer_specs(config, dtypes.attention, dtypes.experts).items()
    }
    vocabulary = {
        name: spec_bytes(spec)
        for name, spec in vocabulary_specs(config, dtypes.embedding, dtypes.unembedding).items()
    }
    experts = layer.pop("experts")
    attention = sum(size for name, size in layer.items() if name.partition(".")[0] in ("qkv", "output"))
    parts = {
        "experts": config.layers * experts,
        "attention": config.layers * attention,
        "embedding": sum(size for name, size in vocabulary.items() if name.startswith("embedding")),
        "unembedding": sum(size for name, size in vocabulary.items() if name.startswith("unembedding")),
    }
    rest = config.layers * (sum(layer.values()) - attention) + sum(vocabulary.values())
    return parts | {"routers and norms": rest - parts["embedding"] - parts["unembedding"]}
