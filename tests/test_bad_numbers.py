"""Numbers in config.json that are none, or that no arithmetic could go on with."""

import numpy as np
import pytest
from support import checkpoints

from localoss.model.rope import Rope
from quant.errors import QuantError
from quant.format.config import parse_config

YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
NUMBERS = [
    "factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "original_max_position_embeddings",
    "rope_theta",
]
WRONG = [float("inf"), float("nan"), "Infinity", "NaN", "many", [], {}, -1, 10**400, 1e300, [1.0], True]


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_of_the_rotary_embedding(name):
    """Infinity, NaN, texts that float() would take, lists: each is one line, before anything is computed."""
    config = checkpoints.config_for(**checkpoints.CHECKPOINTS["short"])
    for value in WRONG:
        for key in ("rope_scaling", "rope_parameters"):
            try:
                parsed = parse_config(config | {key: YARN | {name: value}})
            except QuantError as error:
                assert "\n" not in str(error)
            else:
                with np.errstate(all="raise"):
                    assert all(map(np.isfinite, Rope(parsed).at(parsed.context - 1, 1)[0].ravel()))
