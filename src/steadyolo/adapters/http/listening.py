"""The socket of the server: bound before anything expensive begins."""

from __future__ import annotations

import errno
import resource
import socket

from steadyolo.errors import UserError

BACKLOG = 2_048
_OTHER_FILES = 48  # workers' sockets, modules that are imported, connections that are refused


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they are answered once the front runs. Port 0 is any free one.

    Raises: UserError for an address that is in use, not allowed or not of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"there is no port {port}", remedy="choose one from 1 to 65535, or 0 for any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"{host} is no address to listen on: {error}", remedy="use --host 127.0.0.1") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use", remedy="choose another with --port, or stop what listens there"
            ) from None
        raise UserError(
            f"port {port} of {host} cannot be used: {error.strerror}", remedy="choose another --host or --port"
        ) from None
    listener.setblocking(False)
    return listener


def num_connections(num_wanted: int) -> int:
    """How many connections this process may have, after it was allowed as many files as the system lets it.

    One that accepts more than it has room for stops to listen.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_wanted + _OTHER_FILES
    if soft < wanted and (hard == resource.RLIM_INFINITY or hard > soft):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(num_wanted, soft - _OTHER_FILES))
