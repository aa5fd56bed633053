"""What a request with tools of type mcp can't have a server do: connect elsewhere, tell keys, keep links."""

import http.server
import json
import threading

import openai
import pytest
from support.calling import final
from support.live_server import MODEL

from localoss.server.core import mcp_links
from localoss.server.core.hosted import HostedTools
from localoss.server.core.keys import Keys
from localoss.tools.choice import ToolOptions

pytest.importorskip("mcp")
from support.mcp_fixtures import respond, tool

pytest_plugins = ("support.mcp_fixtures",)


REFUSED = (
    ({"server_url": "http://169.254.169.254/latest"}, "isn't one that clients may use: .*--mcp FILE"),
    ({"server_url": "http://127.0.0.1:1/mcp"}, "isn't one that clients may use"),
    ({"server_url": None, "server_label": "other"}, "isn't one that clients may use"),
    ({"server_url": ["http://127.0.0.1:1/mcp"]}, "isn't one that clients may use"),
    ({"server_url": None, "connector_id": "connector_gmail"}, "connectors and tunnels are OpenAI's"),
    ({"server_label": "a b"}, "needs a server_label"),
    ({"server_label": None}, "needs a server_label"),
    ({"headers": {"Host": "inside"}}, "a header 'Host' can't be sent"),
    ({"headers": {"mcp-session-id": "x"}}, "a header 'mcp-session-id' can't be sent"),
    ({"headers": {"X": "a\r\nY: b"}}, "must be a line of text"),
    ({"headers": {"X Y": "a"}}, "can't be sent"),
    ({"headers": ["X"]}, "headers must be"),
    ({"authorization": "a\nb"}, "must be a line of text"),
    ({"server_url": None, "server_label": "program", "headers": {"X": "y"}}, "takes no headers"),
    ({"require_approval": "perhaps"}, "require_approval is always, never"),
    ({"require_approval": {"never": {"tool_names": "x"}}}, "require_approval.never must be a list"),
    ({"allowed_tools": {"read_only": "yes"}}, "allowed_tools must be a list"),
    ({"allowed_tools": [1]}, "allowed_tools must be a list"),
)


def test_what_is_refused(served, site):
    server, _ = served(final("no"))
    for change, says in REFUSED:
        with pytest.raises(openai.BadRequestError, match=says) as error:
            respond(server, [tool(site, **change)])
        assert error.value.param == "tools" and site.headers == [], change


def test_two_of_a_label_and_names_that_clash(served, site):
    server, _ = served(final("no"))
    with pytest.raises(openai.BadRequestError, match="the same server_label"):
        respond(server, [tool(site), tool(site)])
    mine = {"type": "function", "name": "site__weather", "parameters": {"type": "object"}}
    with pytest.raises(openai.BadRequestError, match="two tools have the name 'site__weather'"):
        respond(server, [tool(site), mine])


def test_without_an_operators_word_nothing_is_connected_to(served, site):
    """The tool is left out, as others are; a request that insists on it is refused."""
    server, _ = served(final("no"), mcp=None)
    body = {"model": MODEL, "input": "Hi", "tools": [tool(site)]}
    assert server.post("/v1/responses", body).headers["x-localoss-ignored"] == "tools:mcp"
    answer = server.post("/v1/responses", body | {"tool_choice": {"type": "mcp"}})
    assert "'mcp', which this server can't run" in answer.text and site.headers == []


def test_a_clients_headers_are_sent_alone_and_shown_to_nobody(served, site):
    server, _ = served(final("a"), final("b"), final("c"))
    own = tool(site, authorization="tok123", headers={"X-Mine": "val456"})
    answer = respond(server, [own])
    assert all(one["authorization"] == "Bearer tok123" and one["x-mine"] == "val456" for one in site.headers)
    assert not any("x-operator" in one for one in site.headers)
    kept = server.client().responses.retrieve(answer.id)
    assert not any(secret in f"{answer}{kept}" for secret in ("tok123", "val456"))
    site.headers.clear()
    respond(server, [tool(site)])
    assert site.headers and all(one["x-operator"] == "secret" for one in site.headers)
    assert not any("x-mine" in one for one in site.headers)


def test_links_are_kept_for_a_key_and_for_no_other(served, site, tmp_path):
    file = tmp_path / "keys"
    file.write_text("one key-of-one\ntwo key-of-two\n")
    server, _ = served(*[final("ok")] * 4, keys=Keys(None, file))
    links = server.service.hosted.mcp

    def ask(key):
        body = {"model": MODEL, "input": "Hi", "tools": [tool(site)]}
        headers = {"Authorization": f"Bearer {key}"}
        return server.post("/v1/responses", body, headers=headers).status_code

    assert [ask("key-of-one"), ask("key-of-one"), ask("key-of-none")] == [200, 200, 401] and len(
        links._kept
    ) == 1
    assert ask("key-of-two") == 200 and [key for key, _ in links._kept] == ["one", "two"]
    first = next(iter(links._kept.values()))
    first.link.close()  # a server that was lost is connected to anew
    assert ask("key-of-one") == 200 and len(links._kept) == 2 and first.link.is_alive


def test_few_links_stay_open(served, site, monkeypatch):
    monkeypatch.setattr(mcp_links, "_MOST_LINKS", 2)
    server, _ = served(*[final("ok")] * 4)
    for number in range(4):
        respond(server, [tool(site, headers={"X": str(number)})])
    links = server.service.hosted.mcp._kept
    assert [dict(one.headers)["X"] for _, one in links] == ["2", "3"]


def test_a_server_that_isnt_there_is_said(served, tmp_path):
    file = tmp_path / "gone.json"
    names = {"gone": {"url": "http://127.0.0.1:9/mcp"}, "bad": {"command": "/no/such/program"}}
    file.write_text(json.dumps({"mcpServers": names}))
    server, _ = served(final("no"), mcp=file)
    for label in names:
        with pytest.raises(openai.APIStatusError, match=f"from MCP server: '{label}'") as error:
            respond(server, [{"type": "mcp", "server_label": label}])
        assert error.value.status_code == 424 and error.value.type == "external_connector_error"


def test_a_name_that_leads_into_this_network_is_refused(served, site, tmp_path, monkeypatch, caplog):
    from localoss.tools import addresses

    real = addresses.socket.getaddrinfo

    def resolving(host, *arguments, **options):
        return real("127.0.0.1" if host == "wiki.example" else host, *arguments, **options)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", resolving)
    port = site.url.partition(":")[2].partition(":")[2]
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"mcpServers": {"wiki": {"url": f"http://wiki.example:{port}"}}}))
    server, _ = served(final("no"), mcp=file)
    with pytest.raises(openai.APIStatusError, match="The server's log says why") as error:
        respond(server, [{"type": "mcp", "server_label": "wiki"}])
    assert site.headers == [] and "127.0.0.1" not in str(error.value)
    assert "wiki.example is at 127.0.0.1" in caplog.text and "--web-allow" in caplog.text
    tools = HostedTools(ToolOptions(mcp=file, web_allow=("wiki.example",)))
    server.service.hosted = tools
    try:
        with pytest.raises(openai.APIStatusError):  # the site looks at the Host that it is asked by
            respond(server, [{"type": "mcp", "server_label": "wiki"}])
    finally:
        tools.close()
    assert site.headers[0]["host"].startswith("wiki.example:")


@pytest.mark.parametrize("status", [302, 401])
def test_a_redirect_isnt_followed_and_no_address_is_told(served, site, tmp_path, caplog, status):
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(status)
            self.send_header("Location", site.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format, *words):
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as there:
        threading.Thread(target=there.serve_forever, daemon=True).start()
        file = tmp_path / "elsewhere.json"
        url = f"http://127.0.0.1:{there.server_port}/mcp?key=hidden"
        file.write_text(json.dumps({"mcpServers": {"elsewhere": {"url": url}}}))
        server, _ = served(final("no"), mcp=file)
        with pytest.raises(openai.APIStatusError) as error:
            respond(server, [{"type": "mcp", "server_label": "elsewhere"}])
        there.shutdown()
    assert error.value.status_code == 424 and site.headers == []
    assert "hidden" not in caplog.text and "hidden" not in str(error.value)
