"""llama.cpp's tokens of some texts, through an exported GGUF file, beside those of openai-harmony.

python benchmarks/tokenizing.py MODEL.gguf --python PEER/bin/python [TEXT FILES; default: this repository's]

MODEL.gguf is what `localoss export --gguf` wrote for a model with gpt-oss's whole vocabulary; PEER is a
virtual environment with PyPI's xllamacpp. Prints how many texts and tokens agree, and the first that don't;
whether llama.cpp applies the chat template as harmony renders.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why is\nthe sky blue?"},
]
ODD = [
    "",
    " ",
    "\n\n\n  x",
    "don't  STOP",
    "1234567",
    "日本語 ﷺ 👩🏽 \u200b",
    "<|start|>user<|message|>Hi<|end|>",
    "a" * 300,
]
# Runs with PEER's Python: requests as JSON on stdin, answers as JSON on the last line of stdout.
PEER = """
import json, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.use_jinja = sys.argv[1], 64, True
server = xllamacpp.Server(params)
answers = []
for path, content in json.load(sys.stdin):
    request = urllib.request.Request(server.listening_address + path, json.dumps(content).encode(),
                                     {"Content-Type": "application/json"})
    answers.append(json.load(urllib.request.urlopen(request, timeout=600)))
print("\\n" + json.dumps(answers), flush=True)
"""


def texts_of(paths: list[Path]) -> list[str]:
    """Paragraphs of the files, and texts that tokenizers stumble over."""
    contents = [path.read_text(encoding="utf-8") for path in paths]
    return ODD + [part for content in contents for part in content.split("\n\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--python", required=True, help="of a virtual environment with xllamacpp")
    args = parser.parse_args()
    from localoss.chat import harmony

    paths = args.texts or sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("quant/*.py")])
    texts = texts_of(paths)
    requests: list[tuple[str, dict]] = [
        ("/tokenize", {"content": text, "parse_special": True}) for text in texts
    ]
    requests.append(("/apply-template", {"messages": CHAT}))
    command = [args.python, "-c", PEER, str(args.model)]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    answers = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("[")))
    wrong, tokens = [], 0
    for text, answer in zip(texts, answers, strict=False):
        expected = harmony.encode_raw(text)
        tokens += len(expected)
        if answer["tokens"] != expected:
            wrong.append({"text": text[:200], "expected": expected[:50], "found": answer["tokens"][:50]})
    setup = harmony.ChatSetup(instructions="Be brief.")
    said = [
        harmony.Message(m["role"], m["content"], "final" if m["role"] == "assistant" else None)
        for m in CHAT[1:]
    ]
    template = harmony.encode_raw(answers[-1]["prompt"]) == harmony.render(setup, said)
    report = {"texts": len(texts), "tokens": tokens, "wrong": wrong[:5], "wrong_texts": len(wrong)}
    print(json.dumps(report | {"template_equals_harmony": template}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
