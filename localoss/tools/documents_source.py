"""The user's documents as a source of the browser's."""

import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from localoss.chat.agent import Stop
from localoss.errors import UsageError
from localoss.tools.browser import result_list
from localoss.tools.documents_index import DocumentsIndex
from localoss.tools.pages import Page, text_page

_FRESH_S = 30.0


class DocumentsSource:
    """Searches the indexed folders, after bringing them up to date."""

    name = "documents"

    def __init__(self, index: DocumentsIndex, folders: Sequence[Path] = ()) -> None:
        """folders: those that are searched; none for all that were added. Raises: UsageError without any."""
        self._index, self._folders = index, [Path(folder) for folder in folders]
        there = self._folders or index.folders
        if not there:
            raise UsageError("there are no documents: localoss docs add FOLDER, or --docs FOLDER")
        self.reach = f"the documents in {', '.join(map(str, there))}; nothing leaves this machine"
        self._looked = -_FRESH_S

    def search(self, query: str, most: int, stop: Stop) -> Page:
        folders = self._folders or self._index.folders
        if time.monotonic() - self._looked > _FRESH_S:
            self._index.refresh(folders, lambda: stop.is_set)
            self._looked = time.monotonic()
        hits = self._index.search(query, most, self._folders)
        return result_list(query, [(hit.path.as_uri(), hit.title, hit.passage) for hit in hits])

    def open(self, url: str, stop: Stop, whole: bool = False) -> Page | None:
        """Indexed files alone: the model can't name others."""
        parts = urlsplit(url)
        if parts.scheme not in ("file", ""):
            return None
        path = Path(url2pathname(parts.path) if parts.scheme else unquote(url)).expanduser()
        folders = self._folders or self._index.folders
        if not any(folder in path.parents for folder in folders):
            return None
        found = self._index.text_of(path)
        return text_page(path.as_uri(), *found) if found else None

    def close(self) -> None:
        self._index.close()
