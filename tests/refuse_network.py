"""Run by IPython at the start of every kernel under test: refuse all but the loopback address.

An audit hook sees every connection and every look-up of a name that Python code asks for.
"""

import ipaddress
import sys


def refuse(event, args):
    if event == "socket.connect" or event == "socket.sendto":
        host = args[1][0] if isinstance(args[1], tuple) else "localhost"  # else a Unix socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0] or "localhost"
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise ConnectionRefusedError(f"the tests refuse every connection beyond loopback: {host}")


sys.addaudithook(refuse)
