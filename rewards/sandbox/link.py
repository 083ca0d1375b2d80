"""The connection between a program and the tests that call it, which run in different processes.

A call that the tests make is executed in the program's process, and its result comes back as plain data. Anything else
(an object of the program, a generator, a function) stays there, and the tests get a Remote for it: it can be called,
indexed, iterated and passed back, its attributes can be read and set, but it is equal to nothing else, whatever
comparison the program defines.

A name that neither the tests nor their task define is left to the program to define, so its value must not decide a
test. The tests get an OpaqueRemote for it, which can only be passed back to the program (such as a Node to call a
function with).
"""

from __future__ import annotations

import builtins
import json
import operator
from collections.abc import Callable
from typing import Any, BinaryIO

from rewards.sandbox.values import MAX_SIZE, NotPlain, TooLarge, decode, encode

_MAX_REPLY = 16 * MAX_SIZE
_REASON_LENGTH = 150
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    **{
        "get": getattr,
        "set": setattr,
        "item": operator.getitem,
        "iter": iter,
        "next": next,
        "len": len,
        "bool": bool,
        "str": str,
    },
}

COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__")
_BINARY = (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
ARITHMETIC = (
    *(f"__{side}{name}__" for name in _BINARY for side in ("", "r")),
    *("__neg__", "__pos__", "__abs__", "__invert__", "__round__"),
)
_ENDS = (StopIteration, StopAsyncIteration)


class ProgramEndpoint:
    """Executes requests in the program's process. find: maps a name to the program's object."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find
        self._kept: list[Any] = []

    def reply(self, request: bytes) -> bytes:
        return json.dumps(self._done(*json.loads(request))).encode() + b"\n"

    def _done(self, target: str | int, operation: str, arguments: Any, keep_remote: bool) -> dict[str, Any]:
        try:
            args, kwargs = decode(arguments, self._object)
            result = _OPERATIONS[operation](self._object(target), *args, **kwargs)
            return {
                "value": {"type": "kept", "value": self._keep(result)} if keep_remote else encode(result, self._keep)
            }
        except BaseException as error:  # noqa: BLE001  an exception of the program is a result
            return encode_error(error)

    def _object(self, target: str | int) -> Any:
        return self._find(target) if isinstance(target, str) else self._kept[target]

    def _keep(self, value: Any) -> int:
        self._kept.append(value)
        return len(self._kept) - 1


def encode_error(error: BaseException) -> dict[str, Any]:
    """An exception as data: its text, its nearest built-in class and its arguments."""
    text = describe_error(error)
    try:
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
        return {"error": text, "type": kind, "args": encode(list(error.args))}
    except BaseException:  # noqa: BLE001  its class may be defined by the program, and its arguments may be anything
        return {"error": text, "type": "RuntimeError", "args": [text]}


def describe_error(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  its __str__ may be defined by the program
        text = type(error).__name__
    return text[:_REASON_LENGTH].rstrip(": ")


class TestsAborted(BaseException):
    """The tests cannot go on. Not an Exception, which a test might catch; `TestsEndpoint.abort_reason` is set too."""


class TestsEndpoint:
    """The tests' end of the connection.

    abort_reason: empty, or why the tests cannot go on: {"gone": True} if the program's process has ended, {"bad":
    reason} if
        the tests make a request that cannot be executed.
    """

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self._requests, self._replies = requests, replies
        self.num_calls = 0
        self.abort_reason: dict[str, Any] = {}

    def remote(self, target: Any) -> Remote:
        return Remote(self, target)

    def call(
        self, target: Any, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep_remote: bool = False
    ) -> Any:
        """The result of an operation on the target. keep_remote: keep even plain data with the program, as a Remote."""
        self.num_calls += 1
        try:
            request = [target, operation, encode([list(args), kwargs], self._name), keep_remote]
        except TooLarge:  # an argument made from the program's results: the program fails, not the tests
            raise
        except NotPlain as error:
            raise self.abort({"bad": f"an argument of a call is {error}"}) from None
        result = self._answer(request)
        if keep_remote and not isinstance(result, Remote):
            raise TypeError("the program's reply is no value")
        return result

    def abort(self, reason: dict[str, Any]) -> TestsAborted:
        self.abort_reason = self.abort_reason or reason
        return TestsAborted()

    def _answer(self, request: list[Any]) -> Any:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            reply = self._replies.readline(_MAX_REPLY)
        except OSError:
            reply = b""
        if not reply.endswith(b"\n"):
            raise self.abort({"gone": True})
        try:
            answer = json.loads(reply)
            if "value" in answer:
                return decode(answer["value"], self.remote)
            kind = getattr(builtins, answer["type"])
            error = kind(*decode(answer["args"])) if issubclass(kind, BaseException) else None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            error = None
        if isinstance(error, _ENDS) and request[1] != "next":  # it would end a map() or all() of the tests early
            error = RuntimeError(f"the program raised {type(error).__name__}")
        raise error or TypeError("the program's reply is no value")

    def _name(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return value._target
        raise NotPlain(f"a {type(value).__name__}, which is not plain data")


class Remote:
    """Stands for an object of the program. target: the number under which the program keeps the object, or its name."""

    _link: TestsEndpoint
    _target: Any

    def __init__(self, link: TestsEndpoint, target: Any) -> None:
        self.__dict__.update(_link=link, _target=target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self._target, "call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._link.call(self._target, "get", (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.call(self._target, "set", (name, value), {})

    def __getitem__(self, key: Any) -> Any:
        return self._link.call(self._target, "item", (key,), {})

    def __iter__(self) -> Any:
        return self._link.call(self._target, "iter", (), {})

    def __next__(self) -> Any:
        return self._link.call(self._target, "next", (), {})

    def __len__(self) -> int:
        return self._link.call(self._target, "len", (), {})

    def __bool__(self) -> bool:
        return self._link.call(self._target, "bool", (), {})

    def __str__(self) -> str:
        return self._link.call(self._target, "str", (), {})


class OpaqueRemote(Remote):
    """Stands for an object behind a name that the tests use without defining it. It can be called and passed to the
    program; any use that could decide a test aborts the tests."""

    _maker: str

    def __init__(self, link: TestsEndpoint, target: Any, maker: str) -> None:
        super().__init__(link, target)
        self.__dict__["_maker"] = maker

    def __call__(self, *args: Any, **kwargs: Any) -> OpaqueRemote:
        return self._made("call", args, kwargs)

    def __getattr__(self, name: str) -> OpaqueRemote:
        return self._refuse() if name.startswith("__") else self._made("get", (name,), {})  # for isinstance()

    def _made(self, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OpaqueRemote:
        made = self._link.call(self._target, operation, args, kwargs, keep_remote=True)
        return OpaqueRemote(self._link, made._target, self._maker)

    def _refuse(self, *_: Any) -> Any:
        raise self._link.abort({"bad": f"their result depends on {self._maker}, which is the program's to define"})


for _operation in (
    *COMPARISONS,
    *ARITHMETIC,
    "__hash__",
    "__bool__",
    "__len__",
    "__iter__",
    "__next__",
    "__getitem__",
    "__str__",
):
    setattr(OpaqueRemote, _operation, OpaqueRemote._refuse)
