"""The front process: uvicorn on a socket that is bound already, from the first request to an end that loses none."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import Callable, Iterator
from importlib import import_module

from uvicorn import Config, Server

from steadyolo.adapters.http.app import App
from steadyolo.adapters.http.connections import connections_within
from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.adapters.http.listening import BACKLOG
from steadyolo.adapters.http.supervision import Supervisor
from steadyolo.adapters.http.warming import warm_connections, warm_endpoints
from steadyolo.errors import SteadyError, UserError

_READY_POLL_S = 0.005
_IMPORTED_LATER = ("python_multipart.multipart", "steadyolo.adapters.http.tensors")  # by the first who needs them


class Front:
    """Serves `app` on `listener` until a signal asks it to end.

    `on_live` and `on_ready` are called when it answers, and when `/readyz` first says yes. After each `rewarm_s` of
    idleness this process is made to answer once, so that it stays warm as its models do; None leaves both out.
    """

    def __init__(
        self,
        app: App,
        listener: socket.socket,
        limits: HttpLimits,
        *,
        on_live: Callable[[], None],
        on_ready: Callable[[], None],
        grace_s: float,
        drain_s: float,
        ends_when_failed: bool = True,
        rewarm_s: float | None = 1.0,
    ) -> None:
        self._app = app
        self._listener = listener
        self._on_live = on_live
        self._on_ready = on_ready
        self._grace_s = grace_s
        self._drain_s = drain_s
        self._rewarm_s = rewarm_s
        self._ends_when_failed = ends_when_failed
        self._num_signals = 0
        self._failure: BaseException | None = None
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._supervisor = Supervisor()
        self._server = _QuietServer(
            Config(
                app,
                http=connections_within(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(limits.proxies),
                forwarded_allow_ips=[*limits.proxies],
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(drain_s)),
            ),
            listener,
        )

    async def run(self) -> bool:
        """Returns when all has ended: True if every accepted request was answered, False if a second signal cut it off.

        Raises: UserError where no model can be served.

        The first SIGTERM, SIGINT or SIGHUP makes `/readyz` say no at once; requests are answered still. After the grace
        nothing new is accepted, and what was accepted is answered within the time to drain.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` wants it
                loop.add_signal_handler(number, self._on_signal)
        try:
            await self._app.service.start()
        except SteadyError:
            await self._app.service.drain(0.0)
            raise
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener.dup()]))
        getting_ready = asyncio.create_task(self._get_ready())
        getting_ready.add_done_callback(self._on_ready_or_not)
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
            self._app.health.is_draining = True
            self._supervisor.stopping()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), self._grace_s if self._failure is None else 0.0)
            self._server.should_exit = True
            await serving
            await self._app.service.drain(0.0 if self._hurried.is_set() else self._drain_s)
        finally:
            for task in (getting_ready, asked):
                task.cancel()
        if self._failure is not None:
            raise self._failure
        return not self._hurried.is_set()

    async def _get_ready(self) -> None:
        while not self._server.started:
            await asyncio.sleep(_READY_POLL_S)
        self._on_live()
        for name in _IMPORTED_LATER:
            await asyncio.to_thread(import_module, name)
        if self._rewarm_s is not None:
            await warm_connections(*self._address, num_times=3)
        while not (readiness := self._app.service.readiness()).is_ready:
            models = readiness.models
            if self._ends_when_failed and all(one.state == "failed" for one in models):
                why = "; ".join(f"{one.name}: {one.why}" for one in models)
                raise UserError(f"no model can be served: {why}", remedy="export it again, or name another")
            await asyncio.sleep(_READY_POLL_S)
        if self._rewarm_s is not None:
            await warm_endpoints(self._app)
        gc.freeze()  # what is here stays: it need not be looked through again and again
        self._app.health.is_front_ready = True
        self._on_ready()
        await self._supervisor.ready()
        while self._rewarm_s is not None:
            await asyncio.sleep(max(_READY_POLL_S, self._app.asked_s + self._rewarm_s - time.monotonic()))
            if time.monotonic() - self._app.asked_s >= self._rewarm_s:
                self._app.is_warming = True
                await warm_connections(*self._address)
                self._app.is_warming = False

    @property
    def _address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    def _on_ready_or_not(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._asked.set()

    def _on_signal(self) -> None:
        self._num_signals += 1
        self._asked.set()
        if self._num_signals > 1:
            self._server.force_exit = True
            self._hurried.set()


class _QuietServer(Server):
    """Leaves signals to `Front`, and leaves nobody behind whom the kernel has accepted already."""

    def __init__(self, config: Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener  # the server's own is a copy, so that closing that one does not turn anybody away

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        waiting = list(_waiting(self._listener))
        self._listener.close()
        for connection in waiting:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state={}
        )
        return made


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        yield connection
