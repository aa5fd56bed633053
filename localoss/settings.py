"""The environment variables and the configuration file that localoss reads, all of them here."""

import difflib
import functools
import os
import re
import shlex
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from localoss.errors import UsageError

SIMD_NAMES = ("avx512", "vnni", "avx2", "neon", "portable")  # the fastest first
_SESSION_DISK_BYTES = 4_000_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt])?(i)?b?)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(-?)(?:(\d+(?:\.\d+)?)|((?:\d+(?:\.\d+)?(?:ms|h|m|s))*))", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)", re.ASCII)
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# What the configuration file and LOCALOSS_<NAME> may set: defaults of options that have these names.
CONFIG_KEYS: dict[str, type] = {
    "model": str, "effort": str, "system": str, "temperature": float, "top_p": float, "top_k": int,
    "min_p": float, "max_tokens": int, "think_budget": int, "hide_thinking": bool, "private": bool,
    "notify": bool, "context": int, "kv_dtype": str, "threads": int, "memory_limit": str, "must_fit": bool,
    "lookup": bool, "gpu_layers": str, "gpu_experts": str, "gpu_memory": str, "expert_memory": str,
    "gentle": bool, "session_disk": str, "web_search": str,
}  # fmt: skip
PRESET_KEYS = (
    "system", "effort", "temperature", "top_p", "top_k", "min_p", "max_tokens", "think_budget",
    "hide_thinking",
)  # fmt: skip
_SIZES = ("memory_limit", "gpu_memory", "session_disk", "gpu_layers", "gpu_experts", "expert_memory")
_CHOICES = {"effort": ("low", "medium", "high"), "kv_dtype": ("f16", "f32", "int8")}
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def simd() -> str | None:
    """LOCALOSS_SIMD: the instruction set to use; None for the best that the machine has."""
    value = os.environ.get("LOCALOSS_SIMD", "").strip().lower() or None
    if value not in (None, *SIMD_NAMES):
        raise UsageError(f"LOCALOSS_SIMD is {value!r}; use one of {', '.join(SIMD_NAMES)}")
    return value


def software_gpu() -> bool:
    """LOCALOSS_SOFTWARE_GPU: whether a GPU that a program plays may be used. For tests: the CPU is faster."""
    return is_on("LOCALOSS_SOFTWARE_GPU")


def home() -> Path:
    """LOCALOSS_HOME, or the user's data folder: where models live. It need not exist yet."""
    value = os.environ.get("LOCALOSS_HOME")
    if not value:
        return _user_folder("data")
    try:
        folder = Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~someone who isn't a user
        raise UsageError(f"LOCALOSS_HOME is {value!r} ({error}); give a folder") from None
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"LOCALOSS_HOME is {value!r}, which is a file; give a folder")
    return folder


def given_home() -> Path | None:
    """LOCALOSS_HOME, if it is set. Raises: UsageError."""
    return home() if os.environ.get("LOCALOSS_HOME") else None


def close_to_others() -> None:
    """Where the umask lets all users write to what this process makes, take that leave away, and the group's.

    So it is in some containers (000): sessions and models could be changed by whoever gets in. A umask that
    lets a group share is the user's wish.
    """
    if os.name == "posix":
        mask = os.umask(0o022)
        if mask & 0o002:
            os.umask(mask)


def config_folder() -> Path:
    """Where the user's own models.toml lies: LOCALOSS_HOME, or the user's configuration folder."""
    if os.environ.get("LOCALOSS_HOME"):
        return home()
    return _user_folder("config")


def ollama_models() -> list[Path]:
    """Where Ollama keeps its models: OLLAMA_MODELS, or the user's and the Linux service's folders."""
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        return [Path(given)]
    return [*_in_home(".ollama", "models"), Path("/usr/share/ollama/.ollama/models")]


def lm_studio_models() -> list[Path]:
    """Where LM Studio keeps its models, and where it did before version 0.3.6."""
    return [*_in_home(".lmstudio", "models"), *_in_home(".cache", "lm-studio", "models")]


def llama_cpp_models() -> list[Path]:
    """Where llama.cpp's -hf keeps what it downloads: LLAMA_CACHE, or the user's cache folder."""
    given = os.environ.get("LLAMA_CACHE")
    if given:
        return [Path(given)]
    from platformdirs import user_cache_path

    try:
        return [user_cache_path("llama.cpp", appauthor=False)]
    except RuntimeError:  # no home
        return []


def _in_home(*parts: str) -> list[Path]:
    """A folder in the user's home; none where there is no home."""
    try:
        return [Path.home().joinpath(*parts)]
    except RuntimeError:
        return []


def _user_folder(kind: str) -> Path:
    """The user's own folder of a kind; where there is none to be had, one for temporary files.

    So it is in a container whose user has neither HOME nor an entry in /etc/passwd, or none that can be
    written.
    """
    import platformdirs

    try:
        folder = Path(getattr(platformdirs, f"user_{kind}_path")("localoss", appauthor=False))
    except RuntimeError:
        return _stand_in_home() / kind
    if kind == "data" and not folder.exists():
        above = next((one for one in folder.parents if one.exists()), None)
        if not (folder.is_absolute() and above and above.is_dir() and os.access(above, os.W_OK)):
            return _stand_in_home() / kind
    return folder


@functools.cache
def _stand_in_home() -> Path:
    """A folder that is this user's alone among those for temporary files.

    Where there is none, one that can't be made: what only reads finds nothing there.
    """
    import stat
    import tempfile

    name = f"localoss-{os.getuid()}" if hasattr(os, "getuid") else "localoss"
    roots = [os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp", "/dev/shm"]
    with suppress(FileNotFoundError):  # none can be written
        roots.append(tempfile.gettempdir())
    for root in roots:
        folder = Path(root) / name
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        is_mine = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
        if stat.S_ISDIR(found.st_mode) and is_mine and os.access(folder, os.W_OK):
            print(
                f"note: no home folder can be written: {folder} is used; LOCALOSS_HOME names another",
                file=sys.stderr,
            )
            return folder
    print("note: no folder can be written: nothing is kept; LOCALOSS_HOME names one", file=sys.stderr)
    return Path(roots[0]) / name


def debug() -> bool:
    """LOCALOSS_DEBUG: whether errors show their traceback."""
    return is_on("LOCALOSS_DEBUG")


def is_on(name: str) -> bool:
    """Whether a variable says yes. Raises: UsageError for what is neither that nor no."""
    value = os.environ.get(name, "").strip().lower()
    if value not in _ON + _OFF:
        raise UsageError(f"{name} is {value!r}; set it to 1 or 0")
    return value in _ON


def api_key() -> str | None:
    """LOCALOSS_API_KEY: what clients of `localoss serve` must send."""
    return os.environ.get("LOCALOSS_API_KEY") or None


SEARCH_KEYS = {"brave": "BRAVE_API_KEY", "exa": "EXA_API_KEY", "you": "YDC_API_KEY"}


def search_key(name: str) -> str | None:
    """The user's key of a search of the web, by its name in SEARCH_KEYS."""
    return os.environ.get(SEARCH_KEYS[name]) or None


def escape_codes() -> bool:
    """Whether a terminal may be sent codes: to move its cursor, for bold and dim text.

    NO_COLOR (https://no-color.org) is no reason against them: Rich leaves out colours alone.
    """
    return os.environ.get("TERM") != "dumb"


def session_disk() -> int:
    """Bytes that the caches of all sessions may take together."""
    value = configured().get("session_disk")
    return size_bytes(value[0]) if value else _SESSION_DISK_BYTES


def config_file() -> Path:
    """The configuration file: LOCALOSS_CONFIG, or config.toml beside the user's models.toml."""
    given = os.environ.get("LOCALOSS_CONFIG")
    return Path(given).expanduser() if given else config_folder() / "config.toml"


def configured() -> dict[str, tuple[Any, str]]:
    """The defaults that the user chose, by name, each with where it is from: the environment goes first.

    Raises: UsageError that says where a value is wrong.
    """
    found = {name: (value, str(config_file())) for name, value in _config()[0].items()}
    for name, kind in CONFIG_KEYS.items():
        variable = f"LOCALOSS_{name.upper()}"
        if text := os.environ.get(variable, ""):
            found[name] = (_checked(name, from_text(text, kind, variable), variable), variable)
    return found


def presets() -> dict[str, dict[str, Any]]:
    """The user's presets, by name: options and their values."""
    return _config()[1]


def preset(name: str) -> dict[str, Any]:
    """The options of table [presets.NAME]. Raises: UsageError if there is none."""
    if name not in presets():
        nearest = difflib.get_close_matches(name, presets(), n=1)
        hint = (
            f"did you mean {nearest[0]}?" if nearest else f"write a table [presets.{name}] in {config_file()}"
        )
        raise UsageError(f"there is no preset {name}; {hint}")
    return presets()[name]


def _config() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The configuration file's values, and its presets."""
    path = config_file()
    try:
        return _read_config(path, path.stat().st_mtime_ns)
    except OSError:
        return {}, {}


@functools.lru_cache(maxsize=1)
def _read_config(path: Path, _changed: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    try:
        return parse_config(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; mend or remove it") from None


def parse_config(text: str, where: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values and the presets in a configuration file's `text`. Raises: UsageError."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, or a thousand lists in each other
        raise UsageError(f"{where}: not TOML ({error}); mend or remove it") from None
    presets = values.pop("presets", {})
    if not isinstance(presets, dict) or not all(isinstance(table, dict) for table in presets.values()):
        raise UsageError(f"{where}: presets are tables, as [presets.short]")
    for name, table in presets.items():
        presets[name] = {key: _checked(key, v, f"{where}: [presets.{name}]") for key, v in table.items()}
        if other := table.keys() - set(PRESET_KEYS):
            raise UsageError(f"{where}: [presets.{name}] takes {', '.join(PRESET_KEYS)}, not {min(other)}")
    return {key: _checked(key, value, where) for key, value in values.items()}, presets


def from_text(text: str, kind: type, where: str) -> Any:
    """What `text` means as a value of `kind`. Raises: UsageError, which says `where`."""
    if kind is bool:
        if text.lower() not in _ON + _OFF:
            raise UsageError(f"{where} is {text!r}; set it to 1 or 0")
        return text.lower() in _ON
    try:
        return kind(text)
    except ValueError:
        meant = "a whole number" if kind is int else "a number"
        raise UsageError(f"{where} is {text!r}; give {meant}") from None


def kind_of(name: str, where: str) -> type:
    """What setting `name` takes. Raises: UsageError, which says `where`, for a name that is none."""
    if name not in CONFIG_KEYS:
        nearest = difflib.get_close_matches(name, CONFIG_KEYS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(CONFIG_KEYS)}"
        raise UsageError(f"{where}: there is no setting {name}; {hint}")
    return CONFIG_KEYS[name]


def _checked(name: str, value: Any, where: str) -> Any:
    """`value`, which is what `name` takes. Raises: UsageError."""
    kind = kind_of(name, where)
    if kind is str and type(value) is int and name in _SIZES:
        value = str(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
        raise UsageError(f"{where}: {name} is {value!r}; give {words[kind]}")
    choices = _CHOICES.get(name, ())
    if choices and value not in choices:
        raise UsageError(f"{where}: {name} is {value!r}; use one of {', '.join(choices)}")
    if name in _SIZES and name not in ("gpu_layers", "gpu_experts") and value != "mapped":
        try:
            size_bytes(str(value))
        except UsageError as error:
            raise UsageError(f"{where}: {name}: {error}") from None
    return value


def size_bytes(text: str) -> int:
    """16GB, 16 GiB, 13e9: a size in bytes. Raises: UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) < 1:
        raise UsageError(f"{text!r} is no size; write 16GB, 12.5GiB or a number of bytes")
    power = " kmgt".index((match[2] or " ").lower())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def duration_s(text: str) -> float | None:
    """10m, 1h30m, 90 or -1: seconds, as Ollama writes them; None for what is negative: for ever.

    Raises: UsageError.
    """
    text = text.strip()
    if not (match := _DURATION.fullmatch(text)) or text in ("", "-"):
        raise UsageError(f"{text!r} is no duration; write 10m, 1h30m, 45s or a number of seconds")
    sign, seconds, parts = match.groups()
    if sign:
        return None
    if seconds:
        return float(seconds)
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(parts))


def encoding_is_given() -> bool:
    """Whether Python was told how to encode what it writes."""
    return bool(os.environ.get("PYTHONIOENCODING"))


def color() -> bool:
    """Whether what colours alone say may be said in colours: not with NO_COLOR (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and escape_codes()


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


def environment(changes: dict[str, str]) -> dict[str, str]:
    """What another program is started with: this process's variables, with `changes`."""
    return os.environ | changes


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
