"""`localoss serve`: OpenAI's API on a local model."""

from dataclasses import replace
from typing import Annotated

import typer

from localoss.cli import options
from localoss.cli.terminal import say
from localoss.errors import UsageError
from localoss.options import LoadOptions

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond this machine needs a key.")
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any free port.")]
ApiKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="What clients must send; or set LOCALOSS_API_KEY.")
]
Conversations = Annotated[
    int, typer.Option(metavar="N", min=1, help="How many conversations stay ready to go on.")
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


@options.takes_load_options
def serve(
    model: options.OptionalModelName = None,
    host: Host = "127.0.0.1",
    port: Port = 11435,
    api_key: ApiKey = None,
    conversations: Conversations = 4,
    queue: Queue = 64,
    cors_origin: CorsOrigin = None,
    allowed_host: AllowedHost = None,
    strict: Strict = False,
    alias: Alias = None,
    think_budget: options.ThinkBudget = None,
    *,
    loading: LoadOptions,
) -> None:
    """Serve a model over HTTP to whatever speaks OpenAI's API.

    Without MODEL, the one that is installed, or the demo model that comes with localoss.
    Chat completions, responses and completions, with tools and structured outputs. Ctrl-C or SIGTERM lets
    what runs finish, and ends.
    """
    from localoss import settings

    key = settings.api_key() if api_key is None else api_key
    if key is not None and not key.strip():
        raise UsageError("--api-key is empty; give a key, or leave it out")
    if host not in _LOOPBACK and key is None:
        raise UsageError(f"--host {host} lets other machines ask; that needs --api-key KEY")
    try:
        from localoss.server.run import open_socket
        from localoss.server.run import serve as run_server
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} isn't installed: pip install 'localoss[server]'") from None
    from localoss.chat.harmony import check_vocabulary
    from localoss.cli.loading import load_model
    from localoss.hub.registry import default_model

    model = model or default_model()
    with open_socket(host, port) as bound:
        folder, engine = load_model(model, replace(loading, slots=conversations))
        check_vocabulary(engine.config.vocab)
        name = folder.absolute().name.replace("--", "/", 1)  # as the store writes a repository's name
        run_server(
            engine,
            name,
            bound,
            host=host,
            api_key=key,
            cors_origins=cors_origin or (),
            allowed_hosts=allowed_host or (),
            strict=strict,
            aliases=alias or (),
            conversations=conversations,
            queue=queue,
            think_budget=think_budget,
            responses=settings.home() / "server" / "responses.sqlite3",
            listening=lambda url: say(f"{name} · {url} · Ctrl-C ends"),
        )
