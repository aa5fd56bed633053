"""/experts: counts that are the router's, and a picture that fits every terminal."""

import numpy as np
import pytest

import localoss
from localoss.cli.chat.experts import heat_map
from localoss.model.cpu_layers import CpuLayers


def test_counts_are_the_routers(model, monkeypatch):
    engine = localoss.load(model("harmony"), context_tokens=256, threads=1)
    chosen, config = [], engine.config
    route = CpuLayers._route

    def noted(self, index, chunk):
        count = route(self, index, chunk)
        chosen.append((index, self.buffers.expert_ids[: chunk.tokens].copy()))
        return count

    monkeypatch.setattr(CpuLayers, "_route", noted)
    counts = engine.count_experts()
    list(engine.generate([1, 2, 3, 4, 5], 6, temperature=0, stop_ids=()))
    expected = np.zeros((config.layers, config.experts), np.int64)
    for index, ids in chosen:
        for expert in ids.ravel():
            expected[index, expert] += 1
    assert (counts == expected).all() and counts.sum() >= 10 * config.layers * config.active_experts
    assert not engine.count_experts().any(), "counted anew"


@pytest.mark.parametrize("columns", [20, 40, 80, 120, 300])
@pytest.mark.parametrize("shape", [(24, 32), (36, 128), (2, 5)])
def test_a_heat_map_fits(columns, shape):
    counts = np.random.RandomState(3).poisson(2.0, shape)
    counts[0], counts[1, 0], counts[1, 1:] = 0, 100, 0
    lines = heat_map(counts, columns)
    rows = lines[: shape[0]]
    assert all(len(row) < columns for row in rows) and len(lines) == shape[0] + 2
    assert rows[0].split() == ["0"], "a layer without tokens is blank"
    assert set(rows[1].split()[1]) == {"█"} and "█ is 100%" in lines[-2]
    assert all(set(row[4:]) <= set(" ·░▒▓█") for row in rows)


def test_a_device_that_does_not_count_is_told():
    (line,) = heat_map(np.zeros((2, 4), np.int64), 80)
    assert "device" in line
