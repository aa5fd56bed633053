"""Markdown that grows at its end: the part that can no longer change is printed, the rest is drawn again.

Rich parses and lays out; here are the cuts between blocks, and the looks of blocks that end as plain text in
a terminal's scrollback: nothing is centred, boxed or padded, and nothing that a model wrote is left out.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import (
    CodeBlock,
    Heading,
    HorizontalRule,
    ListItem,
    Markdown,
    TableElement,
)
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from localoss import settings
from localoss.cli.chat.width import most_columns

_CODE_THEME = "ansi_dark"  # the terminal's own colours, which its user chose to be readable
_LISTS = ("bullet_list_open", "ordered_list_open")
_MOST_LIST_DIGITS = 2
_STYLES = {
    "markdown.code": "cyan",
    "markdown.block_quote": "dim",
    "markdown.item.number": "none",
    "markdown.link": "none",
    "markdown.link_url": "underline",
}
_SHOWN_AS = {"html_inline": "text", "softbreak": "hardbreak", "image": "text"}
_ADDRESS = re.compile(
    r"https?://[^\s<>\"'`|]*[^\s<>\"'`|.,;:!?)\]}*_]"
)  # without the mark that ends a sentence
_LINKED = ("http://", "https://", "mailto:")
_ESCAPABLE = "*_`#~>+-.|<&$\"'"  # a backslash before anything else is kept: \( begins a formula
_TAB = 8  # as terminals have it: printed code keeps its tabs


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield text


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        theme, plain = _CODE_THEME, "default"
        yield Syntax(
            code, self.lexer_name, theme=theme, word_wrap=True, background_color=plain, tab_size=_TAB
        )


class _Item(ListItem):
    """Numbers with their dots, as wide in each piece of a list as in the whole."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        width = max(len(str(last_number)), _MOST_LIST_DIGITS) + 2
        lines = console.render_lines(self.elements, options.update(width=options.max_width - width))
        for index, line in enumerate(lines):
            yield Segment(" " * width if index else f"{number}. ".rjust(width))
            yield from line
            yield Segment("\n")


class _Rule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="dim")


class _Table(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        for cell in self.header.row.cells if self.header and self.header.row else ():
            table.add_column(cell.content, justify=cell.justify, overflow="fold")
        for row in self.body.rows if self.body else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


def _keep_backslashes(state: StateCore) -> None:
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "text_special" and child.info == "escape" and child.content not in _ESCAPABLE:
                child.content = child.markup


_PARSER = MarkdownIt().enable(["strikethrough", "table"])
_PARSER.core.ruler.before("text_join", "keep_backslashes", _keep_backslashes)


class _Document(Markdown):
    """Markdown in which HTML is text, a line break is one, and an image is its text and its address."""

    elements = Markdown.elements | {
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "hr": _Rule,
        "list_item_open": _Item,
        "table_open": _Table,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme=_CODE_THEME, hyperlinks=True)
        self.markup, self.parsed = text, _PARSER.parse(text)
        for token in self.parsed:
            if token.type == "html_block":
                token.type, token.info = "code_block", "html"
            for child in token.children or ():
                child.type = _SHOWN_AS.get(child.type, child.type)
                if child.tag == "img":
                    child.content = f"{child.content or 'image'} ({child.attrs.get('src', '')})"
                    child.tag, child.children = "", None
            if token.children:
                token.children = list(_with_addresses(token.children))


def _with_addresses(tokens: Iterable[Token]) -> Iterator[Token]:
    """`tokens` in which addresses are links, and a link with words of its own is followed by its address."""
    address, words = None, ""
    for token in tokens:
        if token.type == "link_open":
            address, words = str(token.attrs.get("href", "")), ""
            yield token
        elif token.type == "link_close":
            yield token
            if address and words not in (address, address.removeprefix("mailto:")):
                yield _text(" (")
                yield from _linked(address)
                yield _text(")")
            address = None
        elif address is None and token.type == "text":
            yield from _split_addresses(token.content)
        else:
            words += token.content
            yield token


def _split_addresses(text: str) -> Iterator[Token]:
    end = 0
    for match in _ADDRESS.finditer(text):
        yield _text(text[end : match.start()])
        yield from _linked(match[0])
        end = match.end()
    yield _text(text[end:])


def _linked(address: str) -> list[Token]:
    return [Token("link_open", "a", 1, {"href": address}), _text(address), Token("link_close", "a", -1)]


def _text(text: str) -> Token:
    return Token("text", "", 0, content=text)


@dataclass(frozen=True)
class Piece:
    """A block, or an item of a list that goes on: it stands right under the item before."""

    text: str
    goes_on: bool = False


def split_finished(text: str, goes_on: bool = False) -> tuple[list[Piece], Piece]:
    """The pieces of `text` that later text cannot change, and the one at its end that it still can.

    goes_on: whether `text` begins with a list's further item, as the last piece of an earlier call said.
    """
    lines = text.split("\n")
    cuts: list[tuple[int, bool]] = []  # first line of each piece, and whether its list goes on there
    inside = False
    for token in _Document(text).parsed:
        if token.level == 0 and token.map and token.nesting >= 0:
            cuts.append((token.map[0], goes_on and not cuts))
            inside = token.type in _LISTS
        elif (
            token.level == 1
            and token.type == "list_item_open"
            and token.map
            and inside
            and token.map[0] != cuts[-1][0]
        ):
            cuts.append((token.map[0], True))
    if not cuts:
        return [], Piece(text, goes_on)
    starts = [0] + [line for line, _ in cuts[1:]] + [len(lines)]
    pieces = [
        Piece("\n".join(lines[start:end]), on)
        for start, end, (_, on) in zip(starts[:-1], starts[1:], cuts, strict=True)
    ]
    return pieces[:-1], pieces[-1]


def split_code(piece: Piece, most_lines: int) -> tuple[list[Piece], Piece]:
    """Cut the beginning off a fenced block of more than `most_lines` lines: its lines don't change again.

    Other blocks stay whole, for their layout hangs on what is still to come.
    """
    opener, *lines = piece.text.lstrip("\n").split("\n")  # the break at its end belongs to the next line
    fence = re.match(r" {0,3}(`{3,}|~{3,})", opener)
    if not fence or len(lines) <= most_lines:
        return [], piece
    cut = len(lines) - most_lines // 2
    while cut and not (lines[cut - 1].strip() and lines[cut].strip()):
        cut -= 1  # blank lines at an end would be lost
    if not cut:
        return [], piece
    head = "\n".join([opener, *lines[:cut], fence.group(1)])
    return [Piece(head, piece.goes_on)], Piece("\n".join([opener, *lines[cut:]]), goes_on=True)


def make_renderer() -> "Renderer":
    """A renderer for the terminal that stdout is."""
    console = Console(force_terminal=True, highlight=False, theme=Theme(_STYLES))
    return Renderer(console, settings.links())


class Renderer:
    """Lays text out for a terminal of `width` columns, as lines of text with styles in escape codes.

    links: whether the terminal takes addresses as links, which stay whole where lines are broken.
    """

    def __init__(self, console: Console, links: bool = True) -> None:
        self._console, self._links = console, links

    def markdown(self, text: str, width: int, wraps_code: bool = True) -> list[str]:
        """wraps_code False: a fenced block keeps its tabs and long lines, so that it can be copied."""
        document = _Document(text)
        if not wraps_code and len(document.parsed) == 1 and document.parsed[0].type == "fence":
            code = document.parsed[0].content
            longest = max(most_columns(line.expandtabs(_TAB)) for line in code.split("\n"))
            return self._lines(document, max(width, longest + 1), code.rstrip().split("\n"))
        return self._fitting(document, width)

    def plain(self, text: str, width: int, style: str = "") -> list[str]:
        return self._fitting(Text(text, style=style, overflow="fold"), width)

    def _fitting(self, renderable: object, width: int) -> list[str]:
        """Lines that fit even where characters are wider than Rich takes them for."""
        lines = self._lines(renderable, width)
        columns = width
        while columns > 2 and (most := max(map(most_columns, lines), default=0)) > width:
            columns = max(min(columns * width // most, columns - 1), 2)
            lines = self._lines(renderable, columns)
        return lines

    def _lines(self, renderable: object, width: int, code: Sequence[str] = ()) -> list[str]:
        """code: the lines that are shown, if their tabs are to be kept."""
        options = self._console.options.update(width=max(width, 1), height=None)
        laid_out = self._console.render_lines(renderable, options, pad=False)  # type: ignore[arg-type]
        sources = [*code, *[""] * len(laid_out)]
        rendered = [self._line(line, _tabs(source)) for line, source in zip(laid_out, sources, strict=False)]
        while rendered and not rendered[-1]:
            rendered.pop()
        while rendered and not rendered[0]:
            rendered.pop(0)
        return rendered

    def _line(self, segments: Iterable[Segment], tabs: dict[int, int]) -> str:
        """One line; blanks at its end are cut, so that text copied out of the terminal has none."""
        kept = [segment for segment in segments if not segment.control]
        while kept and not kept[-1].text.strip() and not (kept[-1].style and kept[-1].style.underline):
            kept.pop()
        parts = [segment.text for segment in kept]
        if parts:
            parts[-1] = parts[-1].rstrip()
        if tabs:
            parts = _with_tabs(parts, tabs)
        return "".join(
            self._styled(segment.style or Style.null(), part)
            for segment, part in zip(kept, parts, strict=True)
        )

    def _styled(self, style: Style, text: str) -> str:
        if style.link and not (self._links and style.link.startswith(_LINKED)):
            style = style.update_link(None)
        if self._console.no_color:
            style = style.without_color
        return style.render(text, color_system=self._console._color_system)


def _tabs(line: str) -> dict[int, int]:
    """Where the tabs of `line` begin once they are blanks, and where they end."""
    found, column = {}, 0
    for before in line.split("\t")[:-1]:
        column += len(before)
        found[column] = column = (column // _TAB + 1) * _TAB
    return found


def _with_tabs(parts: Sequence[str], tabs: dict[int, int]) -> list[str]:
    """`parts` of a line with tabs in place of the blanks that were made of them."""
    at, tab_ends, kept = 0, 0, []
    for part in parts:
        text = ""
        for character in part:
            if at in tabs:
                text, tab_ends = text + "\t", tabs[at]
            if at >= tab_ends:
                text += character
            at += 1
        kept.append(text)
    return kept
