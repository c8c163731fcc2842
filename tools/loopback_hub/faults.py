"""Faults that a test arms for the next requests of a kind.

    hub.faults.add(r"GET /cdn/.*/adapter_model.safetensors", flipped_bit())
    hub.faults.add(r"POST /api/models/me/x/commit/", server_error(503), times=2)

A pattern is searched in `METHOD /path`, the path as it was sent (`%2F` stays). The bytes of an LFS file travel on
`/cdn/<owner>/<name>/<sha256>/<file name>`, those of any other file on `/<owner>/<name>/resolve/<revision>/<path>`.
An effect is an ASGI middleware; a new kind of fault is one more function here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Effect = Callable[[ASGIApp], ASGIApp]


@dataclass
class _Armed:
    pattern: re.Pattern[str]
    effect: Effect
    left: int


class Faults:
    """The armed faults; the first that matches a request is used up by one."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(self, pattern: str, effect: Effect, *, times: int = 1) -> None:
        """Arms `effect` for the next `times` requests that match."""
        self._armed.append(_Armed(re.compile(pattern), effect, times))

    def clear(self) -> None:
        """Disarms all."""
        self._armed.clear()

    @property
    def unused(self) -> int:
        """How many armed faults no request has met yet; 0 shows that a test did inject what it says."""
        return sum(armed.left for armed in self._armed)

    def take(self, request_line: str) -> Effect | None:
        """The effect for this request, if one is armed."""
        for armed in self._armed:
            if armed.left > 0 and armed.pattern.search(request_line):
                armed.left -= 1
                return armed.effect
        return None


def server_error(status: int = 500) -> Effect:
    """The request is read and answered with `status`; nothing happens."""

    def effect(app: ASGIApp) -> ASGIApp:
        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            await Request(scope, receive).body()
            await PlainTextResponse("injected fault", status_code=status)(scope, receive, send)

        return failing

    return effect


def lost_answer(status: int = 500) -> Effect:
    """The request takes effect, but the client is told `status`: what a retry must survive."""

    def effect(app: ASGIApp) -> ASGIApp:
        async def losing(scope: Scope, receive: Receive, send: Send) -> None:
            async def swallow(message: Message) -> None:
                return None

            await app(scope, receive, swallow)
            await PlainTextResponse("injected fault", status_code=status)(scope, receive, send)

        return losing

    return effect


def call_first(callback: Callable[[], object]) -> Effect:
    """`callback` runs to its end before the request is served, e.g. a push between two reads.

    It runs in a thread of its own, so it may use a client of the same hub.
    """

    def effect(app: ASGIApp) -> ASGIApp:
        async def preceded(scope: Scope, receive: Receive, send: Send) -> None:
            await run_in_threadpool(callback)
            await app(scope, receive, send)

        return preceded

    return effect


def slow_body(seconds: float, *, chunks: int = 8) -> Effect:
    """The body takes `seconds`, in `chunks` parts."""

    def effect(app: ASGIApp) -> ASGIApp:
        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            async def dripping(message: Message) -> None:
                body = message.get("body", b"")
                step = max(1, -(-len(body) // chunks))
                for start in range(0, len(body), step):
                    await asyncio.sleep(seconds / chunks)
                    await send({"type": message["type"], "body": body[start : start + step], "more_body": True})
                await send({**message, "body": b""} if body else message)

            await app(scope, receive, dripping)

        return slow

    return effect


def cut_connection(after: int = 0) -> Effect:
    """The connection closes after `after` bytes of the body, short of the length the headers promised."""

    def effect(app: ASGIApp) -> ASGIApp:
        async def cut(scope: Scope, receive: Receive, send: Send) -> None:
            left = after

            async def until_cut(message: Message) -> None:
                nonlocal left
                if message["type"] != "http.response.body":
                    await send(message)
                elif left > 0:
                    part = message["body"][:left]
                    left -= len(part)
                    await send({"type": message["type"], "body": part, "more_body": True})

            await app(scope, receive, until_cut)  # no last body message: uvicorn closes the connection

        return cut

    return effect


def flipped_bit(at: int | None = None) -> Effect:
    """One bit of byte `at` (the middle one by default) arrives inverted; the size is right."""

    def flip(body: bytes) -> bytes:
        index = len(body) // 2 if at is None else at
        return body[:index] + bytes([body[index] ^ 1]) + body[index + 1 :] if body else body

    return rewritten(flip)


def wrong_size(by: int) -> Effect:
    """The body is `by` bytes longer (zeros), or shorter, than stored; its own headers agree with what is sent."""
    return rewritten(lambda body: body + bytes(by) if by >= 0 else body[:by])


def rewritten(change: Callable[[bytes], bytes]) -> Effect:
    """The body arrives as `change` makes it, with a Content-Length to match."""

    def effect(app: ASGIApp) -> ASGIApp:
        async def rewriting(scope: Scope, receive: Receive, send: Send) -> None:
            collected: list[Message] = []

            async def collect(message: Message) -> None:
                collected.append(message)

            await app(scope, receive, collect)
            body = change(b"".join(message.get("body", b"") for message in collected[1:]))
            headers = [pair for pair in collected[0]["headers"] if pair[0].lower() != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            await send({**collected[0], "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return rewriting

    return effect
