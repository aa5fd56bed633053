"""The table of docs/gpu.md is what plans say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from localoss.hub.registry import known_models
from localoss.plan.gpu_speed import gpu_estimate
from localoss.plan.memory import Plan, gpu_layers, with_experts_apart

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
ROW = re.compile(
    r"\| (?:\*\*(?P<model>[^*]+)\*\*, )?(?P<size>\d+) GB(?: and more)? (?P<cells>(?:\| [^|]+ ){6})\|$"
)


def rows():
    """(model, GB of the card, its six cells) of each line."""
    model, found = "", []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := ROW.match(line):
            model = match["model"] or model
            found.append(
                (model, int(match["size"]), [cell.strip() for cell in match["cells"].split("|")[1:]])
            )
    return found


def cells_of(plan, layers):
    total = plan.config.layers
    speed = f"{gpu_estimate(plan).tokens_per_s:.1f}"
    return ["all" if layers == total else str(layers), f"{plan.total_bytes / 1e9:.1f} GB", speed]


@pytest.mark.parametrize(("model", "size", "cells"), rows(), ids=lambda value: str(value)[:12])
def test_each_row(model, size, cells, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))
    plan = Plan(known_models()[model].config, context_tokens=8192, threads=8)
    room = size * 10**9
    whole = replace(plan, gpu_layers=gpu_layers(plan, room))
    apart = with_experts_apart(plan, room)
    told = [cell.split(" of ")[0] for cell in cells]
    assert told == cells_of(whole, whole.gpu_layers) + cells_of(apart, apart.gpu_expert_layers)
    assert apart.gpu_layers == plan.config.layers


def test_both_models_are_there():
    assert {row[0] for row in rows()} == {"gpt-oss-20b", "gpt-oss-120b"}
    assert len(rows()) == 13
