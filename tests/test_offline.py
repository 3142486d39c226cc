"""The refusal of the network, under which all notebooks are tested, is real."""

import re

import pytest
from jupyter_client.manager import start_new_kernel


@pytest.fixture(scope="module")
def execute(root):
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(root / "notebooks"))

    def run(code):
        texts = []

        def collect(message):
            content = message["content"]
            texts.append(content.get("text", "") + "".join(content.get("traceback", [])))

        client.execute_interactive(code, output_hook=collect, timeout=60)
        return re.sub("\x1b.*?m", "", "".join(texts))

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "socket.getaddrinfo('example.org', 80)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
        "urllib.request.urlopen('http://example.org', timeout=1)",
    ],
)
def test_kernels_under_test_reach_nothing_beyond_loopback(execute, attempt):
    assert "the tests refuse every connection" in execute(
        f"import socket, urllib.request\n{attempt}"
    )


def test_loopback_works(execute):
    code = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
        "print('connected')"
    )
    assert execute(code) == "connected\n"
