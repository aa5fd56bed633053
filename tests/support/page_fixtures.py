"""Fixtures and answers for the tests of the chat page in a browser."""

import pytest

from localoss.server.page import Page
from support.browser import Tab, chromium
from support.live_server import live
from support.scripted import HELLO, ScriptedEngine

PAGE = Page("tiny")
THINKING = "<|channel|>analysis<|message|>A thought.<|end|><|start|>assistant"
LONG = THINKING + "<|channel|>final<|message|>" + "on and " * 2000
RICH = r"""# Title

Some **bold** text, `code`, [a link](https://example.org/x) and <br> a line.

```python
def double(x):
	return 2 * x  # a tab
```

Inline \(a^2 + b^2 = c^2\) and $e^{i\pi}$, for $5 and $10, and

\[ \sum_{k=1}^n k = \frac{n(n+1)}{2} \]

| a | b |
|:-:|--:|
| 1 | $x$ |

- [x] done
"""


def final(text, thinking="A thought."):
    return (
        f"<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{text}<|return|>"
    )


@pytest.fixture
def page_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_tab(browser):
    """Open tabs; at the end none may have done wrong."""
    tabs = []

    def open_one(server, **options):
        tabs.append(Tab(browser, server, **options))
        return tabs[-1]

    yield open_one
    faults = [fault for tab in tabs for fault in tab.faults]
    for tab in tabs:
        tab.context.close()
    assert not faults, [fault[:300] for fault in faults]


@pytest.fixture
def serve():
    """Serve a scripted engine that answers so."""
    servers = []

    def start(*answers, page=PAGE, context_tokens=8192, token_s=0.0, **options):
        engine = ScriptedEngine(list(answers) or [HELLO], context_tokens=context_tokens, token_s=token_s)
        servers.append(live(engine, page=page, **options))
        return servers[-1].__enter__()

    yield start
    for server in servers:
        server.__exit__(None, None, None)
