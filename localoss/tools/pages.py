"""Pages as the browser shows them: numbered lines, and links that are opened by their number.

The marks are those that gpt-oss was trained on: 【id†text】 for a link, 【cursor†L1-L3】 for a citation. What
looks like one of them in a page's own text is written with other brackets.
"""

import html.parser
import logging
import re
import textwrap
from dataclasses import dataclass, field
from urllib.parse import urldefrag, urljoin, urlsplit

_COLUMNS = 80
_BRACKETS = str.maketrans({"【": "〖", "】": "〗"})
_BLANKS = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_MARKDOWN_LINK = re.compile(
    r"!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)"
)
_LEAST_ARTICLE_CHARS = 200
_LINK = re.compile(r"【\d+†([^】†]*)(?:†[^】]*)?】")
_BLOCKS = frozenset(
    {
        "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption",
        "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav",
        "ol", "p", "pre", "section", "table", "tbody", "tr", "ul",
    }
)  # fmt: skip
_HIDDEN = frozenset(
    {"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "head"}
)


@dataclass(frozen=True)
class Page:
    """url: where it is from, empty for a list of results. links: addresses, by the numbers in the text.

    starts: at which line of its page each of a list's links is to be opened. is_list: results, in which
    nothing is looked for.
    """

    url: str
    title: str
    text: str
    links: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    is_list: bool = False

    @property
    def lines(self) -> list[str]:
        return wrapped(self.text)


@dataclass
class Links:
    """Numbers for addresses, each once."""

    base: str = ""
    urls: list[str] = field(default_factory=list)

    def mark(self, text: str, address: str) -> str:
        """`text` as a link to `address`, or as it is if that leads nowhere else."""
        text = " ".join(plain(text).replace("†", "‡").split())
        try:
            url = urldefrag(urljoin(self.base, address.strip())).url
            parts = urlsplit(url)
        except ValueError:
            return text
        if not text or parts.scheme not in ("http", "https") or not parts.netloc:
            return text
        if url == urldefrag(self.base).url:
            return text
        if url not in self.urls:
            self.urls.append(url)
        domain = "" if parts.netloc == urlsplit(self.base).netloc else f"†{plain(parts.netloc)}"
        return f"【{self.urls.index(url)}†{text}{domain}】"


def plain(text: str) -> str:
    """`text` of a page, in which nothing is a mark."""
    return text.translate(_BRACKETS)


def wrapped(text: str) -> list[str]:
    """The lines that are numbered; blank ones stay."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, _COLUMNS, replace_whitespace=False, drop_whitespace=False) or [""]
    return lines


def text_page(url: str, title: str, text: str) -> Page:
    return Page(url, plain(title), plain(text.replace("\r\n", "\n")))


def html_page(url: str, source: str, whole: bool = False) -> Page:
    """What is read of an HTML page: its article if it has one, otherwise (or if `whole`) all its text."""
    links = Links(url)
    root = _parsed(source)
    if root is None:
        return text_page(url, url, _BLANKS.sub("\n\n", _bare_text(source)).strip())
    title = " ".join((root.findtext(".//title") or "").split()) or url
    text = "" if whole else _article(source, url, links)
    if len(text) < _LEAST_ARTICLE_CHARS:
        links.urls.clear()
        text = _all_text(root, links)
        text = text if text.strip() else _bare_text(source)
    return Page(url, plain(title), _BLANKS.sub("\n\n", text).strip(), tuple(links.urls))


def without_links(text: str) -> str:
    """`text` with its links as plain words, for looking something up in it."""
    return _LINK.sub(lambda found: found[1], text)


def _parsed(source: str):  # type: ignore[no-untyped-def]  # lxml has no types
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, huge_tree=False)
    try:
        return lxml.html.document_fromstring(source.encode("utf-8", "replace") or b" ", parser=parser)
    except (lxml.etree.LxmlError, ValueError, AssertionError):
        return None


def _article(source: str, url: str, links: Links) -> str:
    import trafilatura

    for library in ("trafilatura", "htmldate", "justext", "courlan"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what it makes of a page is no news
    try:
        found = trafilatura.extract(
            source, url=url or None, output_format="markdown", include_links=True, include_tables=True
        )
    except Exception:  # a page that it fails on is read as it is
        return ""
    parts: list[str] = []
    end = 0
    text = found or ""
    for match in _MARKDOWN_LINK.finditer(text):
        parts += [plain(text[end : match.start()]), links.mark(match[1], match[2])]
        end = match.end()
    return "".join([*parts, plain(text[end:])])


def _all_text(root, links: Links) -> str:  # type: ignore[no-untyped-def]
    """All text of a tree, blocks on lines of their own. Without recursion: depth is the page's choice."""
    parts: list[str] = []
    open_links: list[tuple[str, int]] = []  # addresses, and where their text begins in parts
    stack = [(root, False)]
    while stack:
        node, is_end = stack.pop()
        tag = node.tag if isinstance(node.tag, str) else ""
        if is_end:
            if tag == "a" and node.get("href") and open_links:
                address, start = open_links.pop()
                text = "".join(parts[start:])
                parts[start:] = [links.mark(text, address)]
            parts += ["\n"] * (tag in _BLOCKS) + [_words(node.tail)]
            continue
        if not tag or tag in _HIDDEN:
            parts.append(_words(node.tail))
            continue
        parts += ["\n"] * (tag in _BLOCKS) + ["* "] * (tag == "li") + [" "] * (tag in ("td", "th"))
        if tag == "a" and node.get("href"):
            open_links.append((node.get("href"), len(parts)))
        if tag == "img" and node.get("alt"):
            parts.append(f"[Image: {plain(node.get('alt'))}]")
        parts.append(_words(node.text))
        stack.append((node, True))
        stack += [(child, False) for child in reversed(node)]
    return "\n".join(" ".join(line.split()) for line in "".join(parts).split("\n"))


class _Bare(html.parser.HTMLParser):
    """Gathers text, for pages that are nested deeper than lxml follows."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hides = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hides = tag in ("script", "style")
        self.parts += ["\n"] * (tag in _BLOCKS)

    def handle_data(self, data: str) -> None:
        self.parts += [] if self._hides else [data]


def _bare_text(text: str) -> str:
    bare = _Bare()
    bare.feed(text)
    return plain("".join(bare.parts))


def _words(text: str | None) -> str:
    return re.sub(r"\s+", " ", plain(text)) if text else ""
