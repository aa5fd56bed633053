"""`localoss serve` and `localoss web`: OpenAI's API on a local model, and a page to chat in."""

import webbrowser
from collections.abc import Callable
from dataclasses import replace
from threading import Thread
from typing import Annotated, Any
from urllib.parse import quote

import typer

from localoss.cli import options
from localoss.cli.terminal import say
from localoss.errors import UsageError
from localoss.options import MOST_SLOTS, LoadOptions
from localoss.tools.choice import NO_TOOLS, ToolOptions

_LEAST_SHARE = 4096  # tokens of context that an answer has at least where a total is shared unasked
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine needs a key.")
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any free port.")]
ApiKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="What clients must send; or set LOCALOSS_API_KEY.")
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
    *,
    loading: LoadOptions,
    tooling: ToolOptions,
) -> None:
    """Serve a model over HTTP to whatever speaks OpenAI's API, and a chat page to browsers.

    Without MODEL, the one that is installed, or the demo model that comes with localoss.
    Chat completions, responses and completions, with tools and structured outputs. Ctrl-C or SIGTERM lets
    what runs finish, and ends.
    """
    key = _key(api_key, host)

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
        api_key=key,
        cors_origins=cors_origin or (),
        allowed_hosts=allowed_host or (),
        strict=strict,
        aliases=alias or (),
        queue=queue,
        think_budget=think_budget,
        tooling=tooling,
    )


@options.takes_load_options
def web(
    model: options.OptionalModelName = None,
    port: Port = 11435,
    api_key: ApiKey = None,
    conversations: Conversations = None,
    think_budget: options.ThinkBudget = None,
    *,
    loading: LoadOptions,
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
    )


def listen(
    model: str | None,
    host: str,
    port: int,
    loading: LoadOptions,
    *,
    listening: Callable[[str, str], None],
    has_page: bool,
    parallel: int | None = None,
    tooling: ToolOptions = NO_TOOLS,
    **server_options: Any,
) -> None:
    """Load the model and serve it. listening: told its name and the server's address, once it answers.

    parallel: how many answers are written side by side; None for as many as were loaded, up to MOST_SLOTS.
    """
    from localoss import settings

    try:
        from localoss.server.core.hosted import HostedTools, check_hosted
        from localoss.server.page import Page
        from localoss.server.run import open_socket
        from localoss.server.run import serve as run_server
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} isn't installed: pip install 'localoss[server]'") from None
    from localoss.chat.harmony import check_vocabulary
    from localoss.cli.loading import introduction, load_model
    from localoss.hub.registry import default_model, name_of

    model = model or default_model()
    check_hosted(tooling)
    with open_socket(host, port) as bound:
        hosted = HostedTools(tooling) if tooling.wants_any else None
        folder, engine = load_model(model, loading)
        check_vocabulary(engine.config.vocab)
        name = folder.absolute().name.replace("--", "/", 1)  # as the store writes a repository's name
        run_server(
            engine,
            name,
            bound,
            host=host,
            conversations=engine.slots,
            parallel=min(parallel or MOST_SLOTS, engine.slots),
            responses=settings.home() / "server" / "responses.sqlite3",
            hosted=hosted,
            page=Page(name_of(folder), introduction(model), folder) if has_page else None,
            listening=lambda url: listening(name, url.removesuffix("/v1")),
            **server_options,
        )


def _key(given: str | None, host: str) -> str | None:
    """What clients must send. Raises: UsageError if it is empty, or missing where other machines may ask."""
    from localoss import settings

    key = settings.api_key() if given is None else given
    if key is not None and not key.strip():
        raise UsageError("--api-key is empty; give a key, or leave it out")
    if host not in _LOOPBACK and key is None:
        raise UsageError(f"--host {host} lets other machines ask; that needs --api-key KEY")
    return key


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
