"""The browser that gpt-oss was trained with: search, open and find, in documents here and on the web.

Each display has a cursor, [0], [1] and so on, by which the model goes back to it and cites its lines.
Source: openai-harmony's declaration, and openai/gpt-oss for how displays look.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from localoss.chat import harmony
from localoss.chat.agent import Result, Stop
from localoss.chat.harmony import Message
from localoss.errors import LocalossError, UsageError
from localoss.tools.arguments import arguments_of
from localoss.tools.citations import Citation
from localoss.tools.pages import Page, plain, without_links
from localoss.tools.toolset import Tool

_SOURCES = "sources=web (default: web)"  # of harmony's declaration: there are others here
_VIEW_TOKENS = 1024
_MOST_HITS, _MOST_FOUND, _FOUND_LINES = 20, 50, 4
_LINES_BEFORE = 4  # of the line that a list's link leads to
_MOST_SHOWN = 200  # characters of an address


class BrowsingError(LocalossError):
    """What the model asked for can't be shown; it reads why."""


class Source(Protocol):
    """Where pages are from. name: what the model calls it. reach: what it can reach, for the user."""

    name: str
    reach: str

    def search(self, query: str, most: int, stop: Stop) -> Page:
        """A list of pages about `query`. Raises: LocalossError."""

    def open(self, url: str, stop: Stop, whole: bool = False) -> Page | None:
        """The page at `url`; None if this isn't the place for such addresses. Raises: LocalossError."""

    def close(self) -> None: ...


class Browser(Tool):
    name = builtin = "browser"
    limit_s = 90.0

    def __init__(self, sources: Sequence[Source]) -> None:
        """sources: the first one is asked where the model names none. Raises: UsageError without any."""
        if not sources:
            raise UsageError(
                "the browser has nothing to read: --docs FOLDER has it read documents, --web the web"
            )
        self._sources = {source.name: source for source in sources}
        self._shown: list[Page] = []
        names = ", ".join(self._sources)
        self.notes = ((_SOURCES, f"sources={names} (default: {sources[0].name})"),)
        self.reach = "; ".join(source.reach for source in sources)

    def run(self, call: Message, stop: Stop) -> Result:
        function = (call.recipient or "").partition(".")[2]
        try:
            arguments = arguments_of(call.text)
            if function == "search":
                return Result(self._search(arguments, stop))
            if function == "open":
                return Result(self._open(arguments, stop))
            if function == "find":
                return Result(self._find(arguments))
            raise BrowsingError(f"there is no function {function!r}: use search, open or find")
        except LocalossError as error:
            return Result(f"Error: {error}", ok=False)

    def citation(self, cursor: int) -> Citation | None:
        """What was shown under `cursor`."""
        if 0 <= cursor < len(self._shown):
            page = self._shown[cursor]
            return Citation(page.title, page.url)
        return None

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def _search(self, arguments: dict[str, Any], stop: Stop) -> str:
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            raise BrowsingError("search needs a query")
        most = min(max(_number(arguments, "topn", 10), 1), _MOST_HITS)
        page = self._source(arguments).search(query, most, stop)
        return self._show(page, 0)

    def _open(self, arguments: dict[str, Any], stop: Stop) -> str:
        wanted = arguments.get("id", -1)
        line, lines = _number(arguments, "loc", -1), _number(arguments, "num_lines", -1)
        whole = arguments.get("view_source") is True
        if isinstance(wanted, str) and not wanted.lstrip("-").isdecimal():
            return self._show(self._fetch(wanted, arguments, stop, whole), max(line, 0), lines)
        number = int(wanted) if isinstance(wanted, int | float | str) else -1
        page = self._page(_number(arguments, "cursor", -1))
        if number >= 0:
            if number >= len(page.links):
                raise BrowsingError(f"there is no link {number} on that page: it has {len(page.links)}")
            if line < 0 and number < len(page.starts):
                line = max(page.starts[number] - _LINES_BEFORE, 0)
            page = self._fetch(page.links[number], arguments, stop, whole)
        elif whole and page.url:
            page = self._fetch(page.url, arguments, stop, whole)
        return self._show(page, max(line, 0), lines)

    def _find(self, arguments: dict[str, Any]) -> str:
        pattern = str(arguments.get("pattern") or "")
        page = self._page(_number(arguments, "cursor", -1))
        if not pattern.strip():
            raise BrowsingError("find needs a pattern")
        if page.is_list:
            raise BrowsingError("find looks within a page; open one of these results first")
        lines, found, starts, at = page.lines, list[str](), list[int](), 0
        looked = without_links("\n".join(lines)).split("\n")
        while at < len(looked) and len(found) < _MOST_FOUND:
            if pattern.lower() in looked[at].lower():
                shown = "\n".join(looked[at : at + _FOUND_LINES])
                found.append(f"# 【{len(found)}†match at L{at}】\n{shown}")
                starts.append(at)
                at += _FOUND_LINES
            else:
                at += 1
        text = "\n\n".join(found) or f"No `find` results for pattern: `{plain(pattern)}`"
        title = f"Find results for text: `{plain(pattern)}` in `{page.title}`"
        return self._show(Page(page.url, title, text, (page.url,) * len(found), tuple(starts), True), 0)

    def _source(self, arguments: dict[str, Any]) -> Source:
        name = arguments.get("source")
        return self._sources.get(str(name)) or next(iter(self._sources.values()))

    def _fetch(self, url: str, arguments: dict[str, Any], stop: Stop, whole: bool) -> Page:
        if not whole:  # what was shown is there
            for page in self._shown:
                if page.url == url and not page.is_list:
                    return page
        first = self._source(arguments)
        for source in [first, *(other for other in self._sources.values() if other is not first)]:
            found = source.open(url, stop, whole)
            if found is not None:
                return found
        raise BrowsingError(f"{_shortened(url)} can't be opened: no source has such an address")

    def _page(self, cursor: int) -> Page:
        if not self._shown:
            raise BrowsingError("nothing was opened yet: search first, or open an address")
        if cursor < 0:
            return self._shown[-1]
        if cursor >= len(self._shown):
            raise BrowsingError(f"there is no cursor {cursor}: there are 0 to {len(self._shown) - 1}")
        return self._shown[cursor]

    def _show(self, page: Page, line: int, count: int = -1) -> str:
        lines = page.lines
        if line >= len(lines):
            raise BrowsingError(f"there is no line {line}: the page's last is {len(lines) - 1}")
        numbered = [f"L{number}: {text}" for number, text in enumerate(lines[line:], line)]
        shown = numbered[:count] if count > 0 else _fitting(numbered)
        if count > 0:
            shown = _fitting(shown, 4 * _VIEW_TOKENS)
        self._shown.append(page)
        head = f"[{len(self._shown) - 1}] {page.title}"
        where = f" ({_shortened(page.url)})" if page.url else ""
        view = f"**viewing lines [{line} - {line + len(shown) - 1}] of {len(lines) - 1}**"
        return f"{head}{where}\n{view}\n\n" + "\n".join(shown)


def result_list(query: str, hits: Sequence[tuple[str, str, str]]) -> Page:
    """A page of search results: address, title and a passage each."""
    shown = [
        f"  * 【{number}†{' '.join(plain(title).replace('†', '‡').split())}†{_shortened(plain(url))}】 "
        f"{' '.join(plain(passage).split())}"
        for number, (url, title, passage) in enumerate(hits)
    ]
    text = "\n".join(["# Search Results", "", *(shown or ["Nothing was found."])])
    return Page("", plain(query), text, tuple(url for url, _, _ in hits), is_list=True)


def _fitting(lines: list[str], most_tokens: int = _VIEW_TOKENS) -> list[str]:
    """The first of `lines`, about as many as have `most_tokens`; one at least."""
    used = 0
    for number, line in enumerate(lines):
        used += len(harmony.encode_text(line)) + 1
        if used > most_tokens and number:
            return lines[:number]
    return lines


def _number(arguments: dict[str, Any], name: str, default: int) -> int:
    value = arguments.get(name, default)
    if value is None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise BrowsingError(f"{name} must be a number") from None


def _shortened(url: str) -> str:
    return url if len(url) <= _MOST_SHOWN else f"{url[: _MOST_SHOWN - 1]}…"
