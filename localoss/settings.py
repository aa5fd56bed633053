"""The environment variables that localoss reads, all of them here."""

import os
import re
import shlex
from pathlib import Path

from localoss.errors import UsageError

SIMD_NAMES = ("avx512", "vnni", "avx2", "neon", "portable")  # the fastest first
_SESSION_DISK_BYTES = 4_000_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt])?(i)?b?)?", re.ASCII | re.IGNORECASE)
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def simd() -> str | None:
    """LOCALOSS_SIMD: the instruction set to use; None for the best that the machine has."""
    value = os.environ.get("LOCALOSS_SIMD", "").strip().lower() or None
    if value not in (None, *SIMD_NAMES):
        raise UsageError(f"LOCALOSS_SIMD is {value!r}; use one of {', '.join(SIMD_NAMES)}")
    return value


def software_gpu() -> bool:
    """LOCALOSS_SOFTWARE_GPU: whether a GPU that a program plays may be used. For tests: the CPU is faster."""
    return _is_on("LOCALOSS_SOFTWARE_GPU")


def home() -> Path:
    """LOCALOSS_HOME, or the user's data folder: where models live. It need not exist yet."""
    value = os.environ.get("LOCALOSS_HOME")
    if not value:
        from platformdirs import user_data_path

        return user_data_path("localoss", appauthor=False)
    try:
        folder = Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~someone who isn't a user
        raise UsageError(f"LOCALOSS_HOME is {value!r} ({error}); give a folder") from None
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"LOCALOSS_HOME is {value!r}, which is a file; give a folder")
    return folder


def config_folder() -> Path:
    """Where the user's own models.toml lies: LOCALOSS_HOME, or the user's configuration folder."""
    if os.environ.get("LOCALOSS_HOME"):
        return home()
    from platformdirs import user_config_path

    return user_config_path("localoss", appauthor=False)


def ollama_models() -> list[Path]:
    """Where Ollama keeps its models: OLLAMA_MODELS, or the user's and the Linux service's folders."""
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        return [Path(given)]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def lm_studio_models() -> list[Path]:
    """Where LM Studio keeps its models, and where it did before version 0.3.6."""
    return [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]


def llama_cpp_models() -> list[Path]:
    """Where llama.cpp's -hf keeps what it downloads: LLAMA_CACHE, or the user's cache folder."""
    given = os.environ.get("LLAMA_CACHE")
    if given:
        return [Path(given)]
    from platformdirs import user_cache_path

    return [user_cache_path("llama.cpp", appauthor=False)]


def kernel_cache() -> Path:
    """The user's cache folder for compiled kernels."""
    from platformdirs import user_cache_path

    return user_cache_path("localoss", appauthor=False) / "kernels"


def debug() -> bool:
    """LOCALOSS_DEBUG: whether errors show their traceback."""
    return _is_on("LOCALOSS_DEBUG")


def _is_on(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value not in _ON + _OFF:
        raise UsageError(f"{name} is {value!r}; set it to 1 or 0")
    return value in _ON


def api_key() -> str | None:
    """LOCALOSS_API_KEY: what clients of `localoss serve` must send."""
    return os.environ.get("LOCALOSS_API_KEY") or None


def escape_codes() -> bool:
    """Whether a terminal may be sent codes: to move its cursor, for bold and dim text.

    NO_COLOR (https://no-color.org) is no reason against them: Rich leaves out colours alone.
    """
    return os.environ.get("TERM") != "dumb"


def session_disk() -> int:
    """LOCALOSS_SESSION_DISK: bytes that the caches of all sessions may take together."""
    value = os.environ.get("LOCALOSS_SESSION_DISK", "")
    return size_bytes(value) if value else _SESSION_DISK_BYTES


def size_bytes(text: str) -> int:
    """16GB, 16 GiB, 13e9: a size in bytes. Raises: UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) < 1:
        raise UsageError(f"{text!r} is no size; write 16GB, 12.5GiB or a number of bytes")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def encoding_is_given() -> bool:
    """Whether Python was told how to encode what it writes."""
    return bool(os.environ.get("PYTHONIOENCODING"))


def links() -> bool:
    """Whether a terminal may be sent addresses as links (OSC 8), which old consoles show as garbage."""
    return os.environ.get("TERM") not in ("dumb", "linux")


def editor() -> list[str] | None:
    """VISUAL or EDITOR as a command and its arguments, if one of them is set. Raises: UsageError."""
    value = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        return shlex.split(value, posix=os.name == "posix") or None
    except ValueError as error:
        raise UsageError(f"VISUAL or EDITOR is {value!r} ({error}); give a command") from None


def clipboard() -> str | None:
    """Which clipboard this session's programs can reach: wayland, x11, or None for what the system has."""
    if os.environ.get("WAYLAND_DISPLAY"):
        return "wayland"
    return "x11" if os.environ.get("DISPLAY") else None


def set_variable(name: str, value: str) -> None:
    """Set a variable for a library that can be configured in no other way."""
    os.environ[name] = value


def let_threads_sleep() -> None:
    """Have a thread that waits for others sleep after some ten microseconds; OMP_WAIT_POLICY overrides it.

    GNU's OpenMP, which must not be running yet, lets it spin for a millisecond, on a core that one of the
    others may be waiting for on a busy machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
