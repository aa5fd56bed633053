"""`localoss serve` and `localoss web`: the APIs of OpenAI, Anthropic and Ollama, and a page."""

import sys
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from localoss.cli import options
from localoss.cli.terminal import say
from localoss.errors import UsageError
from localoss.options import MOST_SLOTS, LoadOptions
from localoss.tools.choice import NO_TOOLS, ToolOptions

if TYPE_CHECKING:
    from localoss.engine.engine import Engine

_OLLAMA_PORT = 11434
_LEAST_SHARE = 4096  # tokens of context that an answer has at least where a total is shared unasked
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine needs a key.")
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any free port.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="What clients must send. Other users see it here: LOCALOSS_API_KEY is safer.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A name and a key on each line: a key for each client; read again when it changes.",
    ),
]
Conversations = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="How many conversations stay ready to go on; by default as many as are answered side by side.",
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=64,
        help="How many answers are written side by side; by default what fits in memory, at most 8.",
    ),
]
ContextTotal = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=1,
        help="Context of all answers side by side together; --context is that of each.",
    ),
]
Queue = Annotated[int, typer.Option(metavar="N", min=0, help="How many requests may wait.")]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(metavar="ORIGIN", help="A web origin whose pages may ask; may be repeated."),
]

AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A name that clients reach this machine by, such as host.docker.internal; may be repeated.",
    ),
]
Alias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Another name for the model that clients may ask for; may be repeated."
    ),
]
IdleUnload = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="After so long without a request, as 10m, a model leaves memory."),
]
OllamaPort = Annotated[
    bool, typer.Option("--ollama-port", help=f"Listen on Ollama's port {_OLLAMA_PORT} as well.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse fields that aren't known, instead of naming them.")
]
NoPage = Annotated[bool, typer.Option("--no-page", help="Leave the chat page at / out.")]


@options.takes_load_options
@options.takes_tool_options
def serve(
    model: options.OptionalModelName = None,
    host: Host = "127.0.0.1",
    port: Port = 11435,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    parallel: Parallel = None,
    context_total: ContextTotal = None,
    conversations: Conversations = None,
    queue: Queue = 64,
    cors_origin: CorsOrigin = None,
    allowed_host: AllowedHost = None,
    strict: Strict = False,
    alias: Alias = None,
    think_budget: options.ThinkBudget = None,
    no_page: NoPage = False,
    idle_unload: IdleUnload = None,
    ollama_port: OllamaPort = False,
    *,
    loading: LoadOptions,
    tooling: ToolOptions,
) -> None:
    """Serve models to whatever speaks OpenAI's API, Anthropic's or Ollama's, and a chat page to browsers.

    MODEL is in memory from the start; without it, the one that is installed, or the demo model that comes
    with localoss. A request may name any installed model: it is loaded then, in another one's place unless
    there is room for both. Ctrl-C or SIGTERM lets what runs finish, and ends. With --ray each machine of a
    cluster has a replica of MODEL, and SIGHUP restarts them in turn.
    """
    from localoss import settings

    key = _key(api_key, host, api_key_file)
    _check_origins(cors_origin or (), key is not None or api_key_file is not None)
    no_page = (
        no_page or bool(loading.ray) or (key is None and api_key_file is not None)
    )  # its sessions are this machine's user's

    def listening(name: str, url: str) -> None:
        page = "" if no_page else f" · page {url}/"
        say(f"{name} · {url}/v1{page} · Ctrl-C ends")

    listen(
        model,
        host,
        port,
        _shared(loading, parallel, context_total, conversations),
        listening=listening,
        has_page=not no_page,
        parallel=parallel,
        aliases=alias or (),
        ollama_port=ollama_port,
        idle_unload_s=None if idle_unload is None else settings.duration_s(idle_unload),
        api_key=key,
        api_key_file=api_key_file,
        cors_origins=cors_origin or (),
        allowed_hosts=allowed_host or (),
        strict=strict,
        queue=queue,
        think_budget=think_budget,
        tooling=tooling,
    )


@options.takes_load_options
@options.takes_tool_options
def web(
    model: options.OptionalModelName = None,
    port: Port = 11435,
    api_key: ApiKey = None,
    conversations: Conversations = None,
    think_budget: options.ThinkBudget = None,
    *,
    loading: LoadOptions,
    tooling: ToolOptions,
) -> None:
    """Chat in the browser: start a server on this machine and open its page.

    Without MODEL, the one that is installed, or the demo model that comes with localoss.
    Conversations are the sessions of `localoss chat`. Ctrl-C ends the server.
    """
    host = "127.0.0.1"
    key = _key(api_key, host)

    def listening(name: str, url: str) -> None:
        say(f"{name} · {url}/ · Ctrl-C ends")
        address = f"{url}/#key={quote(key, safe='')}" if key else f"{url}/"  # a fragment is never sent
        Thread(target=webbrowser.open, args=(address,), name="browser", daemon=True).start()

    listen(
        model,
        host,
        port,
        _shared(loading, None, None, conversations),
        listening=listening,
        has_page=True,
        api_key=key,
        cors_origins=(),
        queue=64,
        think_budget=think_budget,
        tooling=tooling,
    )


def listen(
    model: str | None,
    host: str,
    port: int,
    loading: LoadOptions,
    *,
    listening: Callable[[str, str], None],
    has_page: bool,
    aliases: Sequence[str] = (),
    ollama_port: bool = False,
    tooling: ToolOptions = NO_TOOLS,
    api_key: str | None = None,
    api_key_file: Path | None = None,
    **server_options: Any,
) -> None:
    """Load the model and serve it, and others that requests name. server_options: see ServeOptions.

    listening: told its name and the server's address, once it answers.
    """
    from localoss import settings
    from localoss.hub.registry import default_model, find_model, name_of

    model = model or default_model()
    folder = find_model(model, say)
    if not loading.ray or loading.spread:  # else the answers are written elsewhere
        _warm_grammars()
    try:
        from localoss.server.core.catalogue import Catalogue, Entry
        from localoss.server.core.hosted import HostedTools, check_hosted
        from localoss.server.core.keys import Keys, others_may_read
        from localoss.server.page import Page
        from localoss.server.run import ServeOptions, open_socket
        from localoss.server.run import serve as run_server
        from localoss.tools.approval import Approvals
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} isn't installed: pip install 'localoss[server]'") from None
    from localoss.cli.loading import introduction
    from localoss.hub import running

    check_hosted(tooling)
    approvals = Approvals(None, settings.home() / "approvals.json")
    keys = None if api_key is None and api_key_file is None else Keys(api_key, api_key_file)
    if api_key_file and others_may_read(api_key_file):
        say(f"note: {api_key_file} can be read by other users; chmod 600 {api_key_file}")
    with ExitStack() as held:
        bound = [held.enter_context(open_socket(host, port))]
        if ollama_port:
            bound.append(held.enter_context(open_socket(host, _OLLAMA_PORT)))
        name = folder.absolute().name.replace("--", "/", 1)  # as the store writes a repository's name

        @contextmanager
        def registered(url: str) -> Iterator[None]:
            with running.registered(url):
                listening(name, url.removesuffix("/v1"))
                yield

        chosen = ServeOptions(
            host=host,
            responses=settings.home() / "server" / "responses.sqlite3",
            keys=keys,
            hosted=HostedTools(tooling, approvals) if tooling.wants_any else None,
            page=Page(name_of(folder), introduction(model), folder) if has_page else None,
            **server_options,
        )
        if loading.ray and not loading.spread:
            _serve_on_cluster(model, loading, (name, aliases), (bound, chosen, registered))
            return
        catalogue = Catalogue(Entry(name, folder), loading, _load, aliases)
        run_server(catalogue, bound, chosen, registered)


def _warm_grammars() -> None:
    """Have what follows JSON schemas started beside all else that a start does.

    It takes a second and a half of a processor, and so does the rest up to the model: the first request with
    tools shouldn't wait for it.
    """
    from localoss.chat import grammar

    Thread(target=grammar.warm_up, name="grammar", daemon=True).start()


def _serve_on_cluster(
    model: str, loading: LoadOptions, names: tuple[str, Sequence[str]], where: tuple[Any, Any, Any]
) -> None:
    """Serve with a replica on each machine. Raises: UsageError."""
    from localoss.cluster.serving import Endpoint, serve_on_cluster
    from localoss.server.balancing.replica import ReplicaOptions

    _, options, _ = where
    if options.hosted:
        raise UsageError("tools run on the server alone: leave out --tools, or --ray")
    replica = ReplicaOptions(*names, options.strict, options.parallel, options.queue, options.think_budget)
    assert loading.ray
    serve_on_cluster(loading.ray, model, loading, replica, Endpoint(*where), say)


def _load(folder: Path, loading: LoadOptions) -> "Engine":
    """An engine that can chat. Raises: LocalossError."""
    from localoss.chat.harmony import check_vocabulary
    from localoss.cli.loading import SpacedLines, load_model

    progress = None if sys.stderr.isatty() else SpacedLines()
    _, engine = load_model(str(folder), loading, progress, has_names=True)
    check_vocabulary(engine.config.vocab)
    return engine


def _key(given: str | None, host: str, file: Path | None = None) -> str | None:
    """The server's own key. Raises: UsageError if it is empty, or none is given where other machines ask."""
    from localoss import settings

    key = settings.api_key() if given is None else given
    if key is not None and not key.strip():
        raise UsageError("--api-key is empty; give a key, or leave it out")
    if host not in _LOOPBACK and key is None and file is None:
        raise UsageError(
            f"--host {host} lets other machines ask; that needs --api-key-file FILE, or LOCALOSS_API_KEY"
        )
    return key


def _check_origins(origins: Sequence[str], has_key: bool) -> None:
    """Raises: UsageError where any web page that the user looks at could ask the model, and read answers."""
    if not has_key and any(origin in ("*", "null") for origin in origins):
        raise UsageError(
            "--cors-origin '*' (or null) lets every web page in your browser ask this server; name the "
            "origins that may, or set LOCALOSS_API_KEY"
        )


def _shared(
    loading: LoadOptions, parallel: int | None, context_total: int | None, conversations: int | None
) -> LoadOptions:
    """`loading` with room for as many answers side by side. Raises: UsageError."""
    if context_total is not None:
        if loading.context_tokens is not None:
            raise UsageError("--context is of each answer, --context-total of all together; give one of them")
        parallel = parallel or max(1, min(MOST_SLOTS, context_total // _LEAST_SHARE))
        if context_total < parallel:
            raise UsageError(f"--context-total {context_total} leaves {parallel} answers no token each")
        loading = replace(loading, context_tokens=context_total // parallel)
    if parallel is None and conversations is None:
        return replace(loading, slots=None)
    return replace(loading, slots=max(parallel or 1, conversations or 1))
