"""Makes docs/screens/ anew, so that the pictures stay true: the page in Chromium, the chat in a terminal.

python tools/screens.py (or make screens)

The page's answer is scripted, for the demo model writes no code and no mathematics; the rest is the program.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
SCREENS = ROOT / "docs" / "screens"
sys.path.insert(0, str(ROOT / "tests"))

QUESTION = "How does quicksort work, and what does it cost?"
THINKING = (
    "The user asks for the idea, code and the cost. Short: idea, code, then the recurrence and a table."
)
ANSWER = r"""**Quicksort** partitions the values around a *pivot* and sorts both sides:

```python
def quicksort(values: list[int]) -> list[int]:
    if len(values) <= 1:
        return values
    pivot, *rest = values
    left = [value for value in rest if value < pivot]
    right = [value for value in rest if value >= pivot]
    return quicksort(left) + [pivot] + quicksort(right)
```

On average \(T(n) = 2\,T(n/2) + \Theta(n)\), so that

\[ T(n) = \sum_{k=0}^{\log_2 n} 2^k \cdot \frac{n}{2^k} = n \log_2 n + O(n). \]

| | average | worst | stable |
|:--|:-:|:-:|:-:|
| Quicksort | $n \log n$ | $n^2$ | no |
| Merge sort | $n \log n$ | $n \log n$ | yes |
"""


def page_screens() -> None:
    """Light with the answer, dark with the thinking unfolded, and a phone's width."""
    from support.browser import Tab, chromium
    from support.live_server import live
    from support.scripted import ScriptedEngine

    from localoss.server.page import Page

    answer = f"<|channel|>analysis<|message|>{THINKING}<|end|><|start|>assistant"
    answer += f"<|channel|>final<|message|>{ANSWER}<|return|>"
    engine = ScriptedEngine([answer], context_tokens=32_768, token_s=0.02)
    with live(engine, name="gpt-oss-20b", page=Page("gpt-oss-20b")) as server, chromium() as browser:
        for title in ("A week in Lisbon with children", "Translate the letter to the landlord"):
            engine.token_s = 0
            tab = Tab(browser, server)
            tab.ask(title)
            tab.context.close()
        engine.token_s = 0.02
        tab = Tab(browser, server, color_scheme="light", viewport={"width": 1100, "height": 940})
        tab.ask(QUESTION)
        tab.page.wait_for_timeout(1500)
        shoot(tab, "page-light")
        at = f"/#{tab.name()}"
        for name, size, scheme in (("page-dark", (1100, 700), "dark"), ("page-phone", (360, 700), "light")):
            other = Tab(
                browser,
                server,
                at=at,
                color_scheme=scheme,
                viewport={"width": size[0], "height": size[1]},
            )
            other.wait_for_answer()
            if name == "page-dark":
                other.page.locator(".fold").click()
            other.page.wait_for_timeout(1500)
            shoot(other, name)


def shoot(tab: Any, name: str) -> None:
    tab.page.evaluate("document.querySelector('.thread').scrollTop = 0")
    tab.page.mouse.move(5, 700)
    tab.page.wait_for_timeout(500)
    tab.page.screenshot(path=str(SCREENS / f"{name}.png"))


def terminal_screen() -> None:
    """`localoss chat` with the demo model, as pyte sees it."""
    from support.pseudo_terminal import Terminal

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "localoss", "chat", "demo", "--temperature", "0"]
        terminal = Terminal(command, columns=92, lines=29, variables={"LOCALOSS_HOME": folder})
        terminal.wait_for("/help for help", timeout_s=300)
        for line in ("What is 37 + 48?", "How do I see how fast a model is?", "/context"):
            terminal.wait_for_prompt()
            terminal.type(line + "\r")
            terminal.settle(2.0)
        terminal.wait_for_prompt()
        screen = terminal._screen
        (SCREENS / "terminal.svg").write_text(svg(screen), encoding="utf-8")
        terminal.close()


COLORS = {"black": "#1b2221", "red": "#c4554d", "green": "#3f8f5f", "brown": "#a87b2a", "blue": "#4178be"}
COLORS |= {"magenta": "#9a5ab0", "cyan": "#2f8f8f", "white": "#c9d1d0", "default": "#e2e7e6"}
WIDTH, HEIGHT, MARGIN = 8.4, 19, 16


def svg(screen: Any) -> str:
    """A picture of pyte's `screen`: a text for each run of characters that look alike."""
    used = max((y for y, line in enumerate(screen.display) if line.strip()), default=0) + 1
    width, height = screen.columns * WIDTH + 2 * MARGIN, used * HEIGHT + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">'
        f'<rect width="100%" height="100%" rx="10" fill="#15191a"/>'
    )
    rows = [run for y in range(used) for run in runs(screen.buffer[y], y, screen.columns)]
    return "\n".join([head, *rows, "</svg>"]) + "\n"


def runs(row: Any, y: int, columns: int) -> list[str]:
    """The texts of a row."""
    made: list[str] = []
    start = 0
    for x in range(1, columns + 1):
        if x < columns and look_of(row[x]) == look_of(row[start]):
            continue
        text = "".join(row[i].data for i in range(start, x)).rstrip()
        if text:
            blank = len(text) - len(text.lstrip())
            left, length = MARGIN + (start + blank) * WIDTH, (len(text) - blank) * WIDTH
            made.append(
                f'<text x="{left:.1f}" y="{MARGIN + y * HEIGHT + 14}" textLength="{length:.1f}" '
                f"{look_of(row[start])}>{escape(text.strip()).replace(' ', chr(0xA0))}</text>"
            )
        start = x
    return made


def look_of(cell: Any) -> str:
    color = COLORS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else COLORS["default"])
    return f'fill="{color}"' + (' font-weight="bold"' if cell.bold else "")


def main() -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOCALOSS_HOME"] = home
        terminal_screen()
        page_screens()
    sizes = {path.name: path.stat().st_size for path in sorted(SCREENS.iterdir())}
    print(*(f"{name}: {size:,} bytes" for name, size in sizes.items()), sep="\n")
    if sum(sizes.values()) >= 1_000_000:
        sys.exit("docs/screens/ is to be under 1 MB")


if __name__ == "__main__":
    main()
