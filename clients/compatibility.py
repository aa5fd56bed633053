"""openai/gpt-oss's own compatibility-test against the player: `python compatibility.py CHECKOUT --folder F`.

CHECKOUT is that repository's compatibility-test folder. Its code stays as it is: copied into --folder, it
gets this server as a provider, and each case's input says to the player which call is expected. All must
pass, of both APIs; as a stream chat's must: with one that test finds no response of the other API to look at.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from run import served

_TRIES = 5
_PATIENCE_S = 1200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("out/clients"))
    chosen = parser.parse_args()
    place = chosen.folder.absolute() / "compatibility-test"
    shutil.copytree(chosen.checkout, place, dirs_exist_ok=True)
    if not (place / "node_modules" / "tsx").exists():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "tsx"], cwd=place, check=True)
    cases = [json.loads(line) for line in (place / "cases.jsonl").read_text().splitlines() if line.strip()]
    for case in cases:
        case["input"] += f" @call {case['tool_name']} {case['expected_arguments']}@"
    (place / "told.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    with served(chosen.folder.absolute()) as url:
        passed = [
            run(place, url, ["responses", "chat"], len(cases), "-k", str(_TRIES)),
            run(place, url, ["chat"], len(cases), "--streaming"),
        ]
    return 0 if all(passed) else 1


def run(place: Path, url: str, apis: list[str], cases: int, *options: str) -> bool:
    """Whether every case passed with each of `apis`."""
    provider = {"apiBaseUrl": f"{url}/v1", "apiKey": "none", "apiType": apis, "modelName": "demo"}
    (place / "providers.ts").write_text(
        f"export const PROVIDERS: any = {json.dumps({'localoss': provider})};\n"
    )
    command = ["npx", "tsx", "index.ts", "--provider", "localoss", "-c", "told.jsonl", *options]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=_PATIENCE_S)
    summary = done.stdout[done.stdout.find("Summary:") :]
    tasks = re.search(r"Total tasks: (\d+)", summary)
    counted = tasks is not None and int(tasks[1]) == cases * len(apis)
    shares = re.findall(r"pass\^k \(k=\d+\): ([\d.]+)", summary)
    invalid = re.findall(r"Invalid \S+.* responses: (\d+)", summary)
    passes = counted and shares == ["1.000"] and set(invalid) == {"0"}
    print(" and ".join(apis), *options, "all pass" if passes else summary + done.stderr[-2000:], flush=True)
    return passes


if __name__ == "__main__":
    sys.exit(main())
