"""Brings the libraries of the chat page into localoss/server/page/static/vendor/, from the npm registry.

python tools/vendor_page.py

Only when versions change: the files are committed, each library with its license. npm checks what it fetches
against the registry's sha512; the files' own are in vendor/README.md, which this writes.
"""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "localoss" / "server" / "page" / "static" / "vendor"
# name: version, and each file's path in the package with its name here.
LIBRARIES = {
    "preact": ("11.2.0", {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "preact-hooks.mjs"}),
    "htm": ("3.1.1", {"dist/htm.mjs": "htm.mjs"}),
    "marked": ("18.2.1", {"lib/marked.esm.js": "marked.mjs"}),
    "dompurify": ("3.5.0", {"dist/purify.min.js": "purify.js"}),
    "@highlightjs/cdn-assets": ("11.12.0", {"es/highlight.min.js": "highlight.mjs"}),
    "katex": ("0.19.1", {"dist/katex.min.js": "katex.js", "dist/katex-swap.min.css": "katex.css"}),
}
_LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt")


def vendor() -> None:
    with tempfile.TemporaryDirectory() as folder:
        packages = [f"{name}@{version}" for name, (version, _) in LIBRARIES.items()]
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder]
        subprocess.run([*install, *packages], check=True)
        shutil.rmtree(VENDOR, ignore_errors=True)
        (VENDOR / "fonts").mkdir(parents=True)
        lines = [_copy(Path(folder, "node_modules", name), name) for name in LIBRARIES]
        fonts = sorted(Path(folder, "node_modules", "katex", "dist", "fonts").glob("*.woff2"))
        for font in fonts:
            shutil.copy(font, VENDOR / "fonts" / font.name)
    head = "# Libraries of the chat page\n\nWritten by `tools/vendor_page.py`; changed there, not here.\n"
    (VENDOR / "README.md").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def _copy(package: Path, name: str) -> str:
    """Copies one library's files and license; gives its entry in the README."""
    version, files = LIBRARIES[name]
    entry = [f"## {name} {version}\n"]
    for path, here in files.items():
        text = (package / path).read_text(encoding="utf-8")
        content = _without_source_map(_own_modules(_woff2_alone(text))).encode()
        (VENDOR / here).write_bytes(content)
        entry.append(f"- {here} is `{path}`, sha256 {hashlib.sha256(content).hexdigest()}")
    license_file = next(package / each for each in _LICENSES if (package / each).exists())
    short = name.split("/")[0].removeprefix("@")
    shutil.copy(license_file, VENDOR / f"{short}.LICENSE")
    return "\n".join([*entry, f"- license: {short}.LICENSE\n"])


def _own_modules(text: str) -> str:
    """Imports by a bare name need an import map, which is an inline script."""
    return text.replace('from"preact"', 'from"./preact.mjs"')


def _woff2_alone(text: str) -> str:
    """Stylesheets without the older kinds of fonts, which no browser that runs the page asks for."""
    import re

    return re.sub(r',url\(fonts/[^)]+\.(?:woff|ttf)\) format\("(?:woff|truetype)"\)', "", text)


def _without_source_map(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("//# sourceMappingURL")) + "\n"


if __name__ == "__main__":
    vendor()
