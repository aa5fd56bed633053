"""`localoss plan --machines`: what is parsed, who gets which layers, and what is expected of them."""

import json
from dataclasses import replace

import pytest

from localoss import cli
from localoss.cluster.machines import Peer, parse_machines
from localoss.cluster.placement import Room, part_of, place
from localoss.cluster.predict import STORED_S_PER_BYTE, call_s, forecasts, rounded, shares_of
from localoss.errors import UsageError
from localoss.hub.registry import known_models
from localoss.plan.memory import Plan

SMALL, LARGE = (Plan(known_models()[f"gpt-oss-{size}b"].config, threads=4) for size in (20, 120))
GB = 10**9


def test_machines_are_read():
    assert parse_machines("4x16GB,25GB/s,1Gb/s") == [Peer(16 * GB, 25e9, 125e6)] * 4
    assert parse_machines("64 GB") == [Peer(64 * GB)]
    two, one = Peer(16 * GB, network=1.25e9, latency_s=0.001), Peer(32 * GB, bandwidth=80e9, cores=16)
    assert parse_machines("2 x 16GB, 10Gbps, 1ms + 32e9,80GBps,16 cores") == [two, two, one]


@pytest.mark.parametrize(
    "text",
    ["", "x", "4x", "4x16", "0x16GB", "16GB,25", "16GB,1Gb", "16GB,0GB/s", "16GB,,", "16GB+", "999999x1GB"],
)
def test_what_is_no_machine_is_one_line(capsys, text):
    assert cli.main(["plan", "gpt-oss-20b", "--machines", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --machines {text!r}") and error.count("\n") == 1
    assert "write it as 4x16GB,25GB/s,1Gb/s" in error


def test_layers_are_shared_out_by_speed_and_within_memory():
    slow, fast = Room("slow", 64 * GB), Room("fast", 64 * GB, speed=3)
    shares = place(SMALL, [slow, fast])
    assert [(share.room, share.first, share.count) for share in shares] == [(0, 0, 6), (1, 6, 18)]
    tight = place(SMALL, [replace(slow, limit_bytes=64 * GB), replace(fast, limit_bytes=3 * GB)])
    assert tight[0].count + tight[1].count == 24
    assert tight[1].count == 5 and tight[1].plan.total_bytes <= 3 * GB


def test_parts_of_a_model_add_up():
    shares = place(LARGE, [Room(str(number), 32 * GB) for number in range(4)])
    assert [share.first for share in shares] == [0, 9, 18, 27] and not any(share.streams for share in shares)
    whole, parts = LARGE.weights, [share.plan.weights for share in shares]
    assert sum(part["experts"] for part in parts) == whole["experts"]
    assert sum(part["attention"] for part in parts) == whole["attention"]
    sliding = [kind for share in shares for kind in share.plan.config.is_sliding]
    assert tuple(sliding) == LARGE.config.is_sliding
    assert part_of(LARGE.config, 9, 9).is_sliding == LARGE.config.is_sliding[9:18]


def test_of_many_machines_so_many_as_help():
    assert len(place(SMALL, [Room(str(number), 64 * GB) for number in range(100)])) == 8
    assert len(place(LARGE, [Room(str(number), 5 * GB) for number in range(100)])) == 18


def test_too_little_memory_streams_or_is_refused():
    shares = place(LARGE, [Room(str(number), 15 * GB, 13 * GB) for number in range(4)])
    assert all(share.streams for share in shares) and sum(share.count for share in shares) == 36
    assert all(share.plan.total_bytes <= 13 * GB for share in shares)
    with pytest.raises(UsageError, match="add a machine"):
        place(LARGE, [Room("one", GB, GB), Room("two", GB, GB)])


def test_more_and_faster_machines_do_more():
    def speeds(text, plan=SMALL):
        return {one.form: one for one in forecasts(plan, parse_machines(text))}

    one, four = speeds("16GB,25GB/s"), speeds("4x16GB,25GB/s")
    assert set(one) == {"batch", "serve"} and set(four) == {"batch", "serve", "spread"}
    assert four["batch"].tokens_per_s == pytest.approx(4 * one["batch"].tokens_per_s)
    assert four["spread"].one_tokens_per_s < one["serve"].one_tokens_per_s  # hops cost
    assert four["spread"].first_token_s < one["serve"].first_token_s  # chunks run side by side
    assert speeds("4x16GB,50GB/s")["spread"].tokens_per_s > four["spread"].tokens_per_s
    assert speeds("4x16GB,10Gb/s,0.01ms")["spread"].first_token_s < four["spread"].first_token_s
    # What 16 GB can't hold alone reads a disk; together they keep nearly all of it.
    large = speeds("4x16GB", LARGE)
    assert large["batch"].from_disk > 0.2 > 0.1 > large["spread"].from_disk
    assert large["spread"].one_tokens_per_s > large["serve"].one_tokens_per_s
    assert speeds("4x1GB", LARGE) == {}


def test_several_answers_keep_machines_busy():
    peers = parse_machines("4x64GB")
    alone, eight = (forecasts(replace(LARGE, slots=slots), peers)[-1] for slots in (1, 8))
    assert alone.form == eight.form == "spread"
    assert eight.tokens_per_s > 1.5 * alone.tokens_per_s


def test_a_call_is_latency_and_bytes():
    peer = Peer(GB, network=125e6, latency_s=0.001)
    one, many = call_s(peer, 2880, 1), call_s(peer, 2880, 128)
    assert one > 0.002
    size = 128 * 2880 * 4
    stored_s = STORED_S_PER_BYTE * size + 4 * 0.001  # a store asks who has it, and gets it
    assert many - one == pytest.approx(127 / 128 * 2 * size / 125e6 + 2 * stored_s)
    assert call_s(peer, 2880, 128, ways=1) < many


def test_the_first_machine_has_the_vocabulary():
    first, second, *_ = shares_of(LARGE, parse_machines("4x16GB"))
    assert first.plan.expert_slots < second.plan.expert_slots


def test_what_is_printed(capsys):
    assert cli.main(["plan", "gpt-oss-120b", "--machines", "4x16GB,25GB/s,1Gb/s"]) == 0
    printed = capsys.readouterr().out
    assert all(form in printed for form in ("batch", "serve", "spread", "--spread"))
    assert cli.main(["plan", "gpt-oss-20b", "--machines", "1000x16GB", "--json", "--context", "4096"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machines"] == 1000 and report["context_tokens"] == 4096
    assert [one["form"] for one in report["forms"]] == ["batch", "serve", "spread"]
    assert sum(share["layers"] for share in report["spread"]) == 24
    assert cli.main(["plan", "gpt-oss-120b", "--machines", "2x1GB"]) == 2
    assert "too little memory" in capsys.readouterr().err


def test_figures_have_three_digits():
    assert [rounded(value) for value in (0, 0.01234, 1.234, 12.34, 1234.5)] == [
        "0", "0.0123", "1.23", "12.3", "1,230",
    ]  # fmt: skip
