"""Searching the web: a SearXNG address, the ddgs package, or Brave, Exa or You.com with the user's key."""

import html
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localoss import settings
from localoss.errors import LocalossError, UsageError

if TYPE_CHECKING:
    import httpx2

NAMES = ("brave", "exa", "you", "ddgs")
_TAG = re.compile(r"<[^<>]{1,200}>")
_MOST_PASSAGE = 500
_ADDRESSES = {
    "brave": "https://api.search.brave.com/res/v1/web/search",
    "exa": "https://api.exa.ai/search",
    "you": "https://api.ydc-index.io/v1/search",
}
_Hit = tuple[str, str, str]


@dataclass(frozen=True)
class Provider:
    """name: of NAMES, or searxng. address: where it is asked. key: what it takes."""

    name: str
    address: str = ""
    key: str | None = None

    @property
    def reach(self) -> str:
        return f"searched by {self.address if self.name == 'searxng' else self.name}"

    def search(self, client: "httpx2.Client", query: str, most: int) -> list[_Hit]:
        """Address, title and a passage of each page. Raises: LocalossError, and what httpx raises."""
        if self.name == "ddgs":
            return _with_ddgs(query, most)
        response = self._ask(client, query, most)
        if response.status_code != 200:
            raise LocalossError(f"{self.name} answers {response.status_code} to the search")
        try:
            found = _results(self.name, response.json())
            hits = [_hit(entry) for entry in found]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LocalossError(f"{self.name} answers the search with something else than results") from None
        return [hit for hit in hits if hit[0].startswith(("http://", "https://"))][:most]

    def _ask(self, client: "httpx2.Client", query: str, most: int) -> "httpx2.Response":
        key = self.key or ""
        if self.name == "searxng":
            return client.get(f"{self.address.rstrip('/')}/search", params={"q": query, "format": "json"})
        if self.name == "brave":
            parameters: dict[str, str | int] = {"q": query, "count": min(most, 20)}
            return client.get(self.address, params=parameters, headers={"X-Subscription-Token": key})
        if self.name == "you":
            return client.get(
                self.address, params={"query": query, "count": most}, headers={"X-API-Key": key}
            )
        body = {"query": query, "numResults": most, "contents": {"summary": True}}
        return client.post(self.address, json=body, headers={"x-api-key": key})


def provider_of(choice: str | None) -> Provider | None:
    """The provider that is meant: one of NAMES, or a SearXNG address; None chooses one that there is.

    Raises: UsageError for one that can't be used.
    """
    if choice is None:
        keyed = next((name for name in _ADDRESSES if settings.search_key(name)), None)
        choice = keyed or ("ddgs" if importlib.util.find_spec("ddgs") else None)
        if choice is None:
            return None
    if choice.startswith(("http://", "https://")):
        return Provider("searxng", choice)
    if choice not in NAMES:
        raise UsageError(
            f"--web-search is {choice!r}; give {', '.join(NAMES)}, or the address of a SearXNG: https://…"
        )
    if choice == "ddgs":
        if importlib.util.find_spec("ddgs") is None:
            raise UsageError("--web-search ddgs needs the package ddgs: pip install ddgs")
        return Provider("ddgs")
    key = settings.search_key(choice)
    if not key:
        raise UsageError(f"--web-search {choice} needs a key: set {settings.SEARCH_KEYS[choice]}")
    return Provider(choice, _ADDRESSES[choice], key)


def _results(name: str, answer: Any) -> list[Mapping[str, Any]]:
    if name == "brave":
        return list(answer.get("web", {}).get("results", []))
    if name == "you":
        results = answer["results"]
        return [*results.get("web", []), *results.get("news", [])]
    return list(answer["results"])


def _hit(entry: Mapping[str, Any]) -> _Hit:
    passages = [entry.get(name) for name in ("content", "description", "summary", "text", "body")]
    passages += entry.get("snippets") or []
    passage = next((text for text in passages if isinstance(text, str) and text), "")
    url = str(entry.get("url") or entry.get("href") or "")
    return url, _words(str(entry.get("title") or url)), _words(passage)[:_MOST_PASSAGE]


def _words(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", text)).split())


def _with_ddgs(query: str, most: int) -> list[_Hit]:
    import ddgs

    try:
        return [_hit(entry) for entry in ddgs.DDGS(timeout=15).text(query, max_results=most)]
    except Exception as error:  # whatever its engines raise
        raise LocalossError(
            f"ddgs can't search ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None
