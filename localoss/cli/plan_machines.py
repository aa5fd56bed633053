"""`localoss plan --machines`: what several machines do with a model."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from localoss.cli.terminal import echo, printable
from localoss.cluster.machines import Peer, parse_machines
from localoss.cluster.placement import Share
from localoss.cluster.predict import PROMPT_TOKENS, forecasts, rounded, shares_of
from localoss.errors import UsageError
from localoss.plan.memory import Plan, gigabytes

if TYPE_CHECKING:
    from localoss.cluster.predict import Forecast

_MOST_SHOWN = 8
_COMMANDS = {
    "batch": "localoss batch IN -o OUT --ray ADDRESS",
    "serve": "localoss serve --ray ADDRESS",
    "spread": "localoss chat MODEL --ray ADDRESS --spread",
}


def tell_of(text: str, label: str, plan: Plan, as_json: bool) -> None:
    """Print what the machines that `text` names are expected to do. Raises: UsageError."""
    peers = parse_machines(text)
    found = forecasts(plan, peers)
    if not found:
        raise UsageError(
            f"--machines {text!r}: too little memory for this model, together, too; "
            f"its weights alone are {gigabytes(plan.weights_bytes)}"
        )
    shares = shares_of(plan, peers) or [] if len(peers) > 1 else []
    if as_json:
        echo(json.dumps(_report(label, plan, peers, found, shares), indent=2))
    else:
        _print(label, plan, peers, found, shares)


def _report(
    label: str, plan: Plan, peers: list[Peer], found: "list[Forecast]", shares: list[Share]
) -> dict[str, object]:
    return {
        "model": label,
        "context_tokens": plan.context_tokens,
        "machines": len(peers),
        "prompt_tokens": PROMPT_TOKENS,
        "forms": [asdict(one) | {"is_estimate": True} for one in found],
        "spread": [
            {
                "machine": share.room + 1,
                "first_layer": share.first,
                "layers": share.count,
                "bytes": share.plan.total_bytes,
                "streams_experts": share.streams,
            }
            for share in shares
        ],
    }


def _print(label: str, plan: Plan, peers: list[Peer], found: "list[Forecast]", shares: list[Share]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal
    head = f"{label} · context {plan.context_tokens:,} tokens · {_kinds(peers)}"
    console.print(f"{printable(head)}\n", markup=False)
    table = Table("form", box=box.SIMPLE_HEAD)
    for name in ("machines", "answers", "tokens/s", "of one", "first token"):
        table.add_column(name, justify="right")
    for one in found:
        speeds = rounded(one.tokens_per_s), rounded(one.one_tokens_per_s)
        first = f"{rounded(one.first_token_s)} s"
        table.add_row(one.form, f"{one.machines:,}", f"{one.answers:,}", *speeds, first)
    console.print(table)
    console.print(
        f"Estimates: tokens/s of all answers together, and of an answer that is alone; the first token of a "
        f"prompt of {PROMPT_TOKENS} tokens."
    )
    for one in found:
        if one.from_disk and one.form != "serve":
            console.print(f"{one.form}: {one.from_disk:.0%} of a token's experts come from a machine's disk.")
    if shares:
        console.print(f"Spread, layers a machine: {_layers(shares)}.")
    for one in found:
        console.print(f"{one.form}: {_COMMANDS[one.form]}", markup=False)


def _kinds(peers: list[Peer]) -> str:
    counts: dict[Peer, int] = {}
    for peer in peers:
        counts[peer] = counts.get(peer, 0) + 1
    return " + ".join(
        f"{count:,} of {gigabytes(peer.memory_bytes)}, {peer.bandwidth / 1e9:.3g} GB/s, "
        f"{peer.network * 8 / 1e9:.3g} Gb/s, {peer.cores} cores"
        for peer, count in counts.items()
    )


def _layers(shares: list[Share]) -> str:
    shown = [f"{share.count} ({gigabytes(share.plan.total_bytes)})" for share in shares[:_MOST_SHOWN]]
    more = f" and {len(shares) - _MOST_SHOWN} more machines" if len(shares) > _MOST_SHOWN else ""
    return ", ".join(shown) + more
