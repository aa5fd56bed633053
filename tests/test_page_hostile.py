# ruff: noqa: E501
"""What a model writes does the page no harm, in headless Chromium: `make page`."""

import pytest
from support.page_fixtures import final

from localoss.chat.conversation import Conversation
from localoss.chat.harmony import ChatSetup, Message
from localoss.chat.session import Session

pytest_plugins = ("support.page_fixtures",)
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("page_home")]
HOSTILE = r"""<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>

[a](javascript:window.hacked=3) [b](data:text/html,<script>window.hacked=4</script>) [c](JaVaScRiPt&#58;window.hacked=5)
<javascript:window.hacked=6> ![d](https://evil.example/leak.png) ![e](javascript:window.hacked=7)

<svg onload="window.hacked=8"><a xlink:href="javascript:window.hacked=9"><text>x</text></a><script>window.hacked=10</script></svg>

<iframe src="https://evil.example/" srcdoc="<script>parent.hacked=11</script>"></iframe><form action="https://evil.example/"><button>x</button></form>
<style>body{background:url(https://evil.example/x)}</style><link rel=stylesheet href=https://evil.example/x.css><base href=https://evil.example/>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=12&gt;">
<details open ontoggle="window.hacked=13">x</details><a href="//evil.example" style="position:fixed;inset:0">everywhere</a>

$\href{javascript:window.hacked=14}{x}$ \(\htmlData{x=1}{y} \includegraphics{https://evil.example/x.png}\) $\def\x{\x\x}\x$

```"><img src=x onerror=window.hacked=15>
<img src=x onerror=window.hacked=16>
```

[<img src=x onerror=window.hacked=17>](https://example.org/"onmouseover="window.hacked=18) `<script>window.hacked=19</script>`
"""


LARGE = {
    "prose and code": ("Some **text** with `code` and $x^2$.\n\n```python\nx = [1]\n```\n\n" * 3400)[
        :200_000
    ],
    "a list": "- item with *emphasis*\n" * 9000,
    "quotes in quotes": "> " * 100_000,
    "brackets": "[" * 200_000,
    "stars": "*a " * 66_000,
    "a table": "| a | b |\n|-|-|\n" + "| 1 | 2 |\n" * 20_000,
    "one word": "x" * 200_000,
    "dollars": "$" * 200_000,
    "formulas in a line": "$x^2$ " * 33_000,
    "tags": "<b>" * 66_000,
    "marks on a letter": "a" + "\u0301" * 100_000,
    "lists in lists": "".join("  " * depth + "- a\n" for depth in range(440)),
    "quotes in few quotes": "> " * 90 + "a",
}


def test_what_a_model_writes_does_no_harm(serve, open_tab):
    """No script, no request elsewhere (Tab notes those), nothing that leaves its place."""
    server = serve(final(HOSTILE, thinking=HOSTILE))
    tab = open_tab(server)
    for again in range(2):
        if again:
            tab.page.reload()
            tab.wait_for_answer()
        else:
            tab.ask(HOSTILE)
        tab.page.locator(".fold").click()
        tab.page.wait_for_timeout(500)
        assert tab.page.evaluate("window.hacked") is None
        inside = "img, script, svg:not(.icon, .katex svg), iframe, form, style, link, base, object, details"
        assert tab.page.locator(f":is(.question, .answer) :is({inside})").count() == 0
        hrefs = tab.page.evaluate("[...document.querySelectorAll('.exchange a')].map(link => link.href)")
        assert hrefs and all(href.startswith("https://") for href in hrefs)
        attributes = tab.page.evaluate(
            "[...document.querySelectorAll('.markdown *')].flatMap(one => [...one.attributes].map(a => a.name))"
        )
        assert not [name for name in attributes if name.startswith("on")]
        for link in tab.page.locator(".answer a").all():
            link.dispatch_event("mouseover")
        assert tab.page.evaluate("window.hacked") is None
    title = tab.page.locator(".list a .title").inner_text()
    assert title.startswith("<img src=x onerror"), "a title is text, too"


def test_inline_scripts_and_eval_are_blocked(serve, open_tab):
    tab = open_tab(serve())
    for attack in (
        "eval('window.hacked = 1')",
        "document.body.innerHTML = '<img src=x onerror=window.hacked=2>'",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 3'}))",
        "setTimeout('window.hacked = 4', 0)",
        "new Function('window.hacked = 5')()",
    ):
        # Playwright's own evaluation isn't held to the policy; what the page's own code does is.
        tab.page.evaluate(
            f"() => new Promise(done => setTimeout(() => {{ try {{ {attack} }} catch {{}} done() }}, 0))"
        )
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in fault or "TrustedHTML" in fault for fault in tab.faults)
    tab.faults.clear()


@pytest.mark.parametrize("kind", LARGE)
def test_200_kb_leave_the_page_alive(serve, open_tab, kind):
    conversation = Conversation(ChatSetup())
    conversation.ask("Go")
    conversation.answer([Message("assistant", LARGE[kind], "final")])
    session = Session("large")
    session.save_messages(conversation, "tiny")
    session.close()
    tab = open_tab(serve(), at="/#large")
    tab.page.wait_for_selector(".answer .markdown > *", state="attached")
    tab.write("still here")
    assert tab.overflow() <= 0
    tab.click("New conversation")
    assert tab.page.locator(".welcome").is_visible()


def test_200_kb_stream(serve, open_tab):
    """A paragraph's tokens come faster than it can be drawn: what is shown lags, and the page answers."""
    tab = open_tab(serve(final(LARGE["prose and code"]), context_tokens=131_072))
    tab.send("Go")
    tab.page.wait_for_selector(".answer .markdown > *")
    tab.page.keyboard.type("written meanwhile")
    assert tab.page.input_value("#message") == "written meanwhile"
    tab.page.wait_for_selector(".figures", timeout=240_000)
    tab.wait_for_answer()
    blocks, drawn = LARGE["prose and code"].count("```p"), -1
    while drawn < blocks:  # however slow the machine is, it goes on
        count = (
            "before => { const n = document.querySelectorAll('.answer pre').length; return n > before && n }"
        )
        drawn = tab.page.wait_for_function(count, arg=drawn).json_value()
    tab.write("still here")
