"""Programs that a chat hands text to: the user's editor, the clipboard."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from localoss import settings
from localoss.errors import LocalossError, UsageError

_EDITORS = ("nano", "vim", "vi", "notepad")
_CLIPBOARDS = {
    "wayland": (("wl-copy",),),
    "x11": (("xclip", "-selection", "clipboard"), ("xsel", "--clipboard", "--input")),
    None: (("pbcopy",), ("clip.exe",)),
}
_CLIPBOARD_S = 5
_MOST_OSC52_BYTES = 74_994  # what xterm takes; its limit is the usual one


def edit(text: str) -> str:
    """Let the user change `text` in their editor, and give what they saved.

    Raises: UsageError if there is no editor, LocalossError if it fails.
    """
    command = settings.editor() or next(([name] for name in _EDITORS if shutil.which(name)), None)
    if command is None:
        raise UsageError("there is no editor: set EDITOR to one")
    descriptor, name = tempfile.mkstemp(prefix="localoss-", suffix=".md")  # readable by its owner alone
    path = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        code = subprocess.run([*command, name]).returncode
        if code:
            raise LocalossError(f"{command[0]} ended with exit code {code}; nothing was changed")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror or error}; set EDITOR to an editor") from None
    except UnicodeDecodeError:
        raise UsageError("what the editor saved is not UTF-8 text; nothing was changed") from None
    finally:
        path.unlink(missing_ok=True)


def copy(text: str) -> str:
    """Put `text` on the clipboard and say by what. Raises: LocalossError if there is no way to it."""
    for command in _CLIPBOARDS[settings.clipboard()]:
        if shutil.which(command[0]) and _copied_by(command, text):
            return command[0]
    if not sys.stdout.isatty() or not settings.escape_codes():
        raise LocalossError("no clipboard program was found: install wl-copy, xclip or xsel")
    coded = base64.b64encode(text.encode("utf-8", "replace")).decode()
    if len(coded) > _MOST_OSC52_BYTES:
        raise LocalossError("too long for the terminal's clipboard: install wl-copy, xclip or xsel")
    sys.stdout.write(f"\x1b]52;c;{coded}\x07")
    sys.stdout.flush()
    return "the terminal (OSC 52; some have it turned off)"


def _copied_by(command: tuple[str, ...], text: str) -> bool:
    # clip.exe reads UTF-16 with its mark; the others what the locale says, which is UTF-8.
    data = text.encode("utf-16" if os.path.basename(command[0]) == "clip.exe" else "utf-8", "replace")
    try:
        done = subprocess.run(
            command,
            input=data,
            timeout=_CLIPBOARD_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
