"""Sessions of Python: children that run snippets, one after another, with variables that are kept."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from json import dumps, loads
from typing import Self

from rewards.sandbox.child import SET_UP, Limits
from rewards.sandbox.client import SandboxError, SandboxLostError, ZygoteProcess, memory_file
from rewards.sandbox.session_zygote import CONTINUE, STOP
from rewards.sandbox.snippets import DONE, FAILED, MAX_MESSAGE, TOKEN_LENGTH
from rewards.sandbox.zygote import END

MAX_SNIPPET = MAX_MESSAGE - TOKEN_LENGTH  # bytes
_MAX_PRINTED = 1 << 26  # bytes of one snippet
_PIPE_SIZE = 1 << 16  # one read takes all that is in a pipe
_START_SECONDS = 60.0
_STATUS_SECONDS = 1.0  # for the zygote to tell how a child has ended


@dataclass(frozen=True)
class SnippetResult:
    """What a snippet printed, its last value and the end of its traceback, in `text`. failed: it raised an exception,
    or ended the session. ended: how the session has ended; empty while it lives."""

    text: str
    failed: bool
    ended: str = ""


class Sessions:
    """A zygote whose children run side by side; it is started anew if it dies. Several threads may open sessions.

    layers, packages, readable: as for a rewards.sandbox.client.Sandbox. Raises SandboxError like it.
    """

    def __init__(self, layers: Sequence[str], *, packages: Sequence[str] = (), readable: Sequence[str] = ()) -> None:
        self._start = lambda: ZygoteProcess("rewards.sandbox.session_zygote", layers, packages, readable)
        self._lock = threading.Lock()
        self._zygote: ZygoteProcess | None = self._start()

    def open(self, limits: Limits) -> Session:
        """A new session, which the caller closes. Raises SandboxError if none can be started.

        limits: wall_seconds are of each snippet, output is the bytes of one's text, the others are of the session.
        """
        session, zygote = self._request(limits)
        try:
            session.await_set_up()
        except SandboxLostError:  # the zygote died with the request unread
            session, _ = self._request(limits, dead=zygote)
            session.await_set_up()
        return session

    def _request(self, limits: Limits, dead: ZygoteProcess | None = None) -> tuple[Session, ZygoteProcess]:
        """A session that has been asked for, and the zygote that was asked, which is not `dead`."""
        with self._lock:
            if self._zygote is None:
                raise SandboxError("the sandbox is closed")
            try:
                if self._zygote is not dead:
                    with suppress(ConnectionError):  # it has died
                        return Session(self._zygote.control, limits), self._zygote
                self._zygote.close()
                self._zygote = self._start()
                return Session(self._zygote.control, limits), self._zygote
            except OSError as error:
                raise SandboxError(f"no session can be started: {error.strerror}") from None

    def close(self) -> None:
        """Ends all sessions. Safe to call twice."""
        with self._lock:
            if self._zygote is not None:
                self._zygote.close()
            self._zygote = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Session:
    """A child that runs snippets. It is stopped between them, so that threads which one has left do not run on.

    For one thread at a time. Raises OSError if it cannot be started.
    """

    def __init__(self, zygote: socket.socket, limits: Limits) -> None:
        self._seconds, self._max_text = limits["wall_seconds"], limits["output"]
        self._is_stopped = False
        with ExitStack() as on_error, ExitStack() as theirs:
            self._control, control = _pair(on_error, theirs)
            self._link, link = _pair(on_error, theirs)
            self._output, output = os.pipe2(os.O_CLOEXEC)
            on_error.callback(os.close, self._output)
            theirs.callback(os.close, output)
            stdin, job = memory_file(b""), memory_file(dumps({"mode": "session"}).encode())
            theirs.callback(os.close, stdin)
            theirs.callback(os.close, job)
            os.set_blocking(self._output, False)
            of_child = [stdin, output, output, link.fileno(), job, link.fileno()]
            socket.send_fds(zygote, [dumps(limits).encode()], [control.fileno(), *of_child])
            self._close = on_error.pop_all().close

    def await_set_up(self) -> None:
        """Waits until the child can run snippets. Raises SandboxError, which ends it, if it cannot be set up."""
        if _is_readable(self._link, _START_SECONDS) and self._link.recv(MAX_MESSAGE) == SET_UP:
            return
        printed = _Excerpt(self._max_text)
        try:
            end = self._status_soon(printed)
        finally:
            self.close()
        raise SandboxError(f"a session could not be set up: {printed.text() or end}")

    def run(self, source: str) -> SnippetResult:
        """Runs a snippet of at most MAX_SNIPPET bytes. A session that gives no answer in time is ended.

        After a result that says how the session has ended it runs nothing more. Raises SandboxError, which ends it
        too, for what is not the snippet's fault.
        """
        token = os.urandom(TOKEN_LENGTH)  # a reply that a snippet has forged for a later one does not have it
        printed = _Excerpt(self._max_text)
        with suppress(OSError):  # the child or the zygote has ended: `_watch` finds out
            if self._is_stopped:
                self._control.send(CONTINUE)
            self._link.send(token + source.encode())
        try:
            reply = self._watch(token, printed, time.monotonic() + self._seconds)
        except SandboxError:
            self.close()
            raise
        if isinstance(reply, bytes):
            with suppress(OSError):  # as above, in the next call
                self._control.send(STOP)
            self._is_stopped = True
            return SnippetResult(printed.text(), failed=reply == FAILED)
        self.close()
        return SnippetResult(printed.text(), failed=True, ended=reply or f"no answer within {self._seconds:g} seconds")

    def _watch(self, token: bytes, printed: _Excerpt, deadline: float) -> bytes | str:
        """Reads what the snippet prints until it ends: DONE or FAILED, or how the session must end; "" at the deadline."""
        poll = select.poll()
        for descriptor in (self._control.fileno(), self._link.fileno(), self._output):
            poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poll.poll(left * 1000)]
            if self._output in ready and not self._read(printed):
                poll.unregister(self._output)
            if printed.size > _MAX_PRINTED:
                return f"it printed more than {_MAX_PRINTED >> 20} MiB"
            if self._link.fileno() in ready:
                return self._reply(token, printed)
            if self._control.fileno() in ready:
                return self._status(printed)
        return ""

    def _reply(self, token: bytes, printed: _Excerpt) -> bytes | str:
        try:
            reply = self._link.recv(MAX_MESSAGE)
        except ConnectionError:  # the child has ended with a message unread
            reply = b""
        if not reply:
            return self._status_soon(printed)
        self._read(printed)
        if reply in (token + DONE, token + FAILED):
            return reply[TOKEN_LENGTH:]
        return "it wrote to the connection of the sandbox"

    def _read(self, printed: _Excerpt) -> bool:
        """Reads what is in the pipe; returns whether there may be more later."""
        try:
            data = os.read(self._output, _PIPE_SIZE)
        except BlockingIOError:
            return True
        printed.add(data)
        return bool(data)

    def _status_soon(self, printed: _Excerpt) -> str:
        """How a child has ended that has closed its connection, as it does when it ends."""
        is_told = _is_readable(self._control, _STATUS_SECONDS)
        return self._status(printed) if is_told else "it closed the connection of the sandbox"

    def _status(self, printed: _Excerpt) -> str:
        """How the child has ended, as the zygote tells. Raises SandboxError if it could not be started, or is lost."""
        try:
            message = self._control.recv(MAX_MESSAGE)
        except ConnectionError:
            # The zygote closed it with a command unread; what it said before comes behind the error.
            message = self._control.recv(MAX_MESSAGE)
        if not message:
            raise SandboxLostError("the zygote died")
        reply = loads(message)
        if "failed" in reply:
            raise SandboxError(f"no session can be started: {reply['failed']}")
        self._read(printed)
        status = reply["status"]
        if status == -signal.SIGKILL:
            return "it was killed, perhaps because the machine had too little memory"
        return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"

    def close(self) -> None:
        """Ends the child. Safe to call twice."""
        with suppress(OSError):
            self._control.send(END)  # closing is not enough where a fork of this process has a copy
        self._close()


def _is_readable(connection: socket.socket, seconds: float) -> bool:
    """Whether it is before so many seconds are over. select.select takes no descriptor from 1024 on, which hundreds of sessions have."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


class _Excerpt:
    """The beginning and the end of a long output. size: of all of it."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._first, self._last, self.size = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._half - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        del self._last[: -self._half]

    def text(self) -> str:
        left_out = self.size - len(self._first) - len(self._last)
        between = f"\n({left_out} bytes are left out)\n".encode() if left_out else b""
        return (self._first + between + self._last).decode(errors="replace")


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A pair of connected sockets that keep messages apart, of which each stack closes one."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.enter_context(first), theirs.enter_context(second)
