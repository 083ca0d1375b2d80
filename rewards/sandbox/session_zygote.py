"""The zygote of sessions: forks children that live side by side and run snippets until they are ended.

rewards.sandbox.sessions starts it. Each child has a socket of its own to its client, over which this process stops,
continues and ends it; when the client closes it, the child is ended. Children share the namespaces of this process, so
that only the other layers part them: the seccomp filter lets a child signal, trace and limit itself alone, and their
memory is hidden (kernel.hide_memory).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
from dataclasses import dataclass

from rewards.sandbox import kernel
from rewards.sandbox.zygote import END, MAX_MESSAGE, NUM_DESCRIPTORS, Zygote, main

STOP, CONTINUE = b"stop", b"continue"
_SIGNALS = {STOP: signal.SIGSTOP, CONTINUE: signal.SIGCONT, END: signal.SIGKILL, b"": signal.SIGKILL}
_MAX_THREADS = 200  # that one child may start in total


@dataclass
class _Session:
    """A child. client: the socket to its client. ended: readable once the child has ended."""

    pid: int
    client: socket.socket
    ended: int
    num_threads: int = 0


class SessionZygote(Zygote):
    """A zygote that holds many children at a time."""

    def __init__(self, control: socket.socket, entered: list[str], readable: list[str]) -> None:
        super().__init__(control, entered, readable)
        self._sessions: dict[int, _Session] = {}  # by child
        self._by_descriptor: dict[int, _Session] = {}  # by `ended`, and by the client's socket while it is watched
        self._events = select.epoll()
        for descriptor in (self._control.fileno(), *([self._new_threads] if self._new_threads is not None else [])):
            self._events.register(descriptor, select.EPOLLIN)

    def serve(self) -> None:
        """Starts and ends children until their common client closes the connection."""
        while True:
            for descriptor, _ in self._events.poll(maxevents=1):  # another event might be of what this one closes
                if descriptor == self._new_threads:
                    with contextlib.suppress(OSError):  # the child ended while its call waited
                        kernel.reply_to_call(descriptor, self._refusal_of_thread)
                elif descriptor != self._control.fileno():
                    self._attend(self._by_descriptor[descriptor], descriptor)
                elif not self._accept():
                    self._kill_strays()
                    return

    def _accept(self) -> bool:
        """Starts the child that the control socket asks for; returns whether the connection is open."""
        message, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, NUM_DESCRIPTORS + 1)
        if not message:
            return False
        client, *of_child = descriptors
        connection = socket.socket(fileno=client)
        connection.setblocking(False)
        myself = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _tell(connection, {"failed": f"fork: {error.strerror}"})
            connection.close()
        else:
            if pid == 0:
                self._become_child(json.loads(message), of_child, myself)
            session = self._sessions[pid] = _Session(pid, connection, os.pidfd_open(pid))
            for descriptor in (session.ended, connection.fileno()):
                self._by_descriptor[descriptor] = session
                self._events.register(descriptor, select.EPOLLIN)
        for descriptor in of_child:
            os.close(descriptor)
        return True

    def _attend(self, session: _Session, descriptor: int) -> None:
        if descriptor == session.ended:
            self._bury(session)
            return
        try:
            command = session.client.recv(MAX_MESSAGE)
        except ConnectionError:
            command = b""
        os.kill(session.pid, _SIGNALS[command])  # a child that has ended is there until it is buried
        if _SIGNALS[command] == signal.SIGKILL:
            self._forget(session.client.fileno())

    def _bury(self, session: _Session) -> None:
        """Tells the client of a child that has ended, and frees what was kept of it."""
        _, status = os.waitpid(session.pid, 0)
        if not self._filtered:  # then it may have left processes; those in sessions of their own live as long as this
            with contextlib.suppress(OSError):
                os.killpg(session.pid, signal.SIGKILL)
        _tell(session.client, {"status": os.waitstatus_to_exitcode(status)})
        self._forget(session.client.fileno())
        self._forget(session.ended)
        session.client.close()
        os.close(session.ended)
        del self._sessions[session.pid]

    def _forget(self, descriptor: int) -> None:
        if self._by_descriptor.pop(descriptor, None):
            self._events.unregister(descriptor)

    def _refusal_of_thread(self, thread: int) -> int:
        """The error number with which the thread's call to create another one fails; 0 if it may."""
        session = self._sessions.get(os.getsid(thread))  # a child leads a session, and the filter keeps it there
        if session is None or session.num_threads == _MAX_THREADS:
            return errno.EAGAIN
        session.num_threads += 1
        return 0


def _tell(client: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # it does not listen any more
        client.send(json.dumps(message).encode())


if __name__ == "__main__":
    main(SessionZygote)
