"""The web as a source of the browser's: pages within bounds of size, time and type, and a search."""

import re
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urldefrag, urljoin, urlsplit

from localoss.chat.agent import Stop
from localoss.chat.documents import read_document
from localoss.errors import LocalossError, UsageError
from localoss.tools import addresses
from localoss.tools.browser import result_list
from localoss.tools.pages import Page, html_page, text_page
from localoss.tools.web_search import Provider
from localoss.tools.workers import unless_stopped

if TYPE_CHECKING:
    import httpx2

_MOST_BYTES = 5_000_000  # of a page, unpacked
_MOST_S = 20.0
_MOST_REDIRECTS = 5
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml", "application/rss")
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?\s*([A-Za-z0-9_-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True)
class _Fetched:
    url: str
    kind: str  # such as text/html
    charset: str | None
    body: bytes
    is_whole: bool


class WebSource:
    """Fetches pages from public addresses, with no cookies, no proxy and nothing that tells who asks."""

    name = "web"

    def __init__(self, provider: Provider | None, allowed: Collection[str] = ()) -> None:
        """allowed: hosts, or hosts and ports, that may be fetched from though they aren't public.

        Raises: UsageError if what it needs isn't installed.
        """
        try:
            import httpx2
            import trafilatura  # noqa: F401 - that it is there, before a page is fetched
        except ImportError as error:
            raise UsageError(f"the web needs {error.name}: pip install 'localoss[tools]'") from None
        self._httpx = httpx2
        self._provider, self._allowed = provider, tuple(allowed)
        self._client = httpx2.Client(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(10.0, connect=5.0),
            headers={"User-Agent": "localoss", "Accept-Language": "en,*;q=0.5"},
        )
        searched = provider.reach if provider else "no search"
        self.reach = f"pages of the public web ({searched})"

    def search(self, query: str, most: int, stop: Stop) -> Page:
        if self._provider is None:
            raise LocalossError(
                "there is no search of the web here, only addresses can be opened; the user can give one "
                "with --web-search"
            )
        with self._told("the search"):
            provider = self._provider
            return result_list(
                query, unless_stopped(lambda: provider.search(self._client, query, most), stop)
            )

    def open(self, url: str, stop: Stop, whole: bool = False) -> Page | None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", ""):
            return None
        url = urldefrag(url if parts.scheme else f"https://{url}").url
        with self._told(url[:200]):
            # A server may take its time for a header, too: it has half as much more than a page's text.
            return _page(unless_stopped(lambda: self._fetch(url, stop), stop, 1.5 * _MOST_S), whole)

    def close(self) -> None:
        self._client.close()

    def _fetch(self, url: str, stop: Stop) -> _Fetched:
        """Raises: LocalossError, AddressRefused, and what httpx raises."""
        ends = time.monotonic() + _MOST_S
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._client.send(self._request(url), stream=True)
            try:
                target = response.headers.get("location")
                if response.is_redirect and target:
                    url = urldefrag(urljoin(url, target)).url
                    continue
                if response.status_code >= 400:
                    raise LocalossError(f"the server answers {response.status_code} for {url[:200]}")
                kind, _, _ = response.headers.get("content-type", "text/html").lower().partition(";")
                kind = kind.strip()
                if not kind.startswith(_TEXT_TYPES) and kind != "application/pdf":
                    raise LocalossError(f"{url[:200]} is {kind[:60]!r}, which can't be read as text")
                body, is_whole = _body(response.iter_bytes(), ends, stop)
                return _Fetched(url, kind, response.charset_encoding, body, is_whole)
            finally:
                response.close()
        raise LocalossError(f"more than {_MOST_REDIRECTS} redirects; the last one leads to {url[:200]}")

    def _request(self, url: str) -> "httpx2.Request":
        """A request to the address that was looked at, under the host's name. Raises: AddressRefused."""
        _, host, port = addresses.split(url)
        request = self._client.build_request("GET", url)
        addresses.direct(request, addresses.resolve(host, port, self._allowed))
        return request

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._httpx.TimeoutException:
            raise LocalossError(f"{what}: no answer in time") from None
        except (self._httpx.HTTPError, self._httpx.InvalidURL, OSError, UnicodeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LocalossError(f"{what} can't be fetched ({reason})") from None


def _body(chunks: Iterator[bytes], ends: float, stop: Stop) -> tuple[bytes, bool]:
    """What comes, unpacked, up to the bound of size, and whether that is all. Raises: LocalossError."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > _MOST_BYTES:
            return bytes(body[:_MOST_BYTES]), False
        if stop.is_set or time.monotonic() > ends:
            raise LocalossError(f"the page didn't arrive within {_MOST_S:.0f} s")
    return bytes(body), True


def _page(fetched: _Fetched, whole: bool) -> Page:
    """Raises: LocalossError for a PDF that can't be read."""
    if fetched.kind == "application/pdf":
        return _pdf_page(fetched)
    text = _decoded(fetched)
    if not fetched.is_whole:
        text += f"\n\n[the page is longer than {_MOST_BYTES / 1e6:.0f} MB; the rest isn't shown]"
    if "html" in fetched.kind:
        return html_page(fetched.url, text, whole)
    return text_page(fetched.url, fetched.url.rpartition("/")[2] or fetched.url, text)


def _pdf_page(fetched: _Fetched) -> Page:
    name = urlsplit(fetched.url).path.rpartition("/")[2] or "document.pdf"
    if not fetched.is_whole:
        raise LocalossError(f"{name} is longer than {_MOST_BYTES / 1e6:.0f} MB: it isn't read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.pdf")
        path.write_bytes(fetched.body)
        try:
            return text_page(fetched.url, name, read_document(path))
        except UsageError as error:
            raise LocalossError(str(error).replace(str(path), name)) from None


def _decoded(fetched: _Fetched) -> str:
    """The text, by the charset that the server or the page names; what doesn't fit it is replaced."""
    named = _META_CHARSET.search(fetched.body[:4096])
    for charset in (fetched.charset, named[1].decode("ascii") if named else None):
        try:
            if charset:
                return fetched.body.decode(charset, "replace")
        except (LookupError, ValueError):
            continue
    return fetched.body.decode("utf-8-sig", "replace")
