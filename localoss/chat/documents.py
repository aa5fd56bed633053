"""Texts that users bring: from pipes, text files, PDF and Word files, whole folders of them."""

import codecs
import glob
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from localoss.errors import UsageError

# UTF-32's mark begins with UTF-16's, so it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MOST_UNPACKED_BYTES = 200_000_000  # of a Word file, which is a zip archive
_MOST_FILES = 1000
_INSTALL = "install localoss[documents], which reads them"


def decode_text(data: bytes, what: str) -> str:
    """`data` as text: UTF-8, or what the mark at its beginning says; the mark is dropped.

    Raises: UsageError, which names `what`, if it is something else.
    """
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        marked = "" if encoding == "utf-8" else ", nor the UTF-16 that its mark says"
        raise UsageError(f"{what}: not UTF-8 text{marked} (byte {error.start:,}); convert it first") from None
    if "\0" in text:
        raise UsageError(f"{what}: not UTF-8 text (it has zero bytes); convert it first")
    return text.replace("\r\n", "\n")


def read_text(path: Path, what: str = "") -> str:
    """The text in file `path`, called `what` in errors. Raises: UsageError."""
    what = what or str(path)
    try:
        return decode_text(path.read_bytes(), what)
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror or error}") from None


def read_document(path: Path) -> str:
    """The text of a PDF, Word or text file.

    Raises: UsageError if it can't be read, has no text, or its kind takes a library that isn't installed.
    """
    kind = path.suffix.lower()
    if kind not in (".pdf", ".docx"):
        return read_text(path)
    try:
        with open(path, "rb"):
            pass  # what the system says about it comes before what a library would
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    text = _pdf_text(path) if kind == ".pdf" else _docx_text(path)
    if not text.strip():
        raise UsageError(f"{path}: has no text (scanned pages take a program for text recognition)")
    return text


def matching_files(argument: str) -> list[Path]:
    """The files that a path, a folder or a pattern such as notes/*.md stands for, in order.

    Of a folder: all files below it but hidden ones. Raises: UsageError if there is none.
    """
    path = Path(argument).expanduser()
    if path.is_dir():
        found = _below(path)
    elif path.exists() or not glob.has_magic(argument):
        return [path]
    else:
        found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
    if not found:
        raise UsageError(f"{path}: no file there")
    return sorted(found)


def _below(folder: Path) -> list[Path]:
    """All files below `folder` but hidden ones. Raises: UsageError if there are very many."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
        if len(found) > _MOST_FILES:
            raise UsageError(
                f"{folder}: has more than {_MOST_FILES:,} files; give a smaller folder or a pattern"
            )
    return [path for path in found if path.is_file()]


def _pdf_text(path: Path) -> str:
    try:
        import pypdf
    except ImportError:
        raise UsageError(f"{path}: PDF files need pypdf: {_INSTALL}") from None
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UsageError(f"{path}: has a password; save it without one")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    except UsageError:
        raise
    except Exception as error:  # a damaged file makes the library raise nearly anything
        raise UsageError(f"{path}: not a PDF file that can be read ({_reason(error)})") from None


def _docx_text(path: Path) -> str:
    try:
        import docx
        from docx.table import Table
    except ImportError:
        raise UsageError(f"{path}: Word files need python-docx: {_INSTALL}") from None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_UNPACKED_BYTES:
                raise UsageError(f"{path}: unpacks to more than {_MOST_UNPACKED_BYTES / 1e6:.0f} MB")
        blocks = []
        for block in docx.Document(str(path)).iter_inner_content():
            if isinstance(block, Table):
                blocks += [" | ".join(_cells(row.cells)) for row in block.rows]
            else:
                blocks.append(block.text)
        return "\n".join(blocks)
    except UsageError:
        raise
    except Exception as error:  # a damaged file makes the library raise nearly anything
        raise UsageError(f"{path}: not a Word file that can be read ({_reason(error)})") from None


def _cells(cells: Sequence[object]) -> list[str]:
    """Texts of a row; a cell that spans columns comes once for each of them."""
    return [cell.text for i, cell in enumerate(cells) if i == 0 or cell is not cells[i - 1]]  # type: ignore[attr-defined]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
