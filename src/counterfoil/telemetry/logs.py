"""Logs: one line an event, with a name and fields; JSON where no person reads along.

Nothing of a sender's data can get into a line by way of a field or an exception (promise P6):
    - a field holds a number, a truth value, a short text, a path or an enum; of anything else its type is named;
    - an exception is named by its type, its place in the code and, where it is an OSError, what the system called it.
      Its message is dropped, because libraries quote values in messages;
    - what a library logs is named by the library and the place in it; its text is dropped for the same reason.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import MutableMapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from uuid import UUID

import structlog

TEXT_CHARS_MAX = 300
"""A reason, a name or a path is shorter; what is longer is not one of them."""

FRAMES_MAX = 12

EventDict = MutableMapping[str, Any]


def configure_logs(
    process: str, *, level: int = logging.INFO, stream: TextIO | None = None, is_terminal: bool | None = None
) -> None:
    """Let all that a process has to say go through here: its own events, what libraries log, what it dies of."""
    write_events(process, level=level, stream=stream, is_terminal=is_terminal)
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def write_events(
    process: str, *, level: int = logging.WARNING, stream: TextIO | None = None, is_terminal: bool | None = None
) -> None:
    """Write events to `stream` (standard error): readable on a terminal, else one JSON object a line."""
    stream = stream or sys.stderr
    is_terminal = stream.isatty() if is_terminal is None else is_terminal
    lines = _Lines(stream)
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            _named(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal),
            describe_exception,
            keep_safe_values,
            _in_order,
            structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
            if is_terminal
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )


class _Lines:
    """Writes whole lines. One that can't be written is dropped: on a full disk the flush thread logs too, and would end
    by it, and with it every request that waits."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = err = error = critical = fatal = failure = exception = msg


def describe_exception(_: object, __: str, event: EventDict) -> EventDict:
    """Put the exception's type and place where `exc_info` was."""
    exception = _exception_of(event.pop("exc_info", None))
    if exception is not None:
        event["error"] = _chain(exception)
        event["at"] = _places(exception.__traceback__)
        if isinstance(exception, OSError) and exception.errno is not None:
            event["errno"] = errno.errorcode.get(exception.errno, str(exception.errno))
    return event


def keep_safe_values(_: object, __: str, event: EventDict) -> EventDict:
    """Leave only values that can't be a row, a token or an object of a sender's; of others the type."""
    for name, value in event.items():
        event[name] = safe_value(value)
    return event


def safe_value(value: object) -> object:
    """The value, where its type can hold nothing of a sender's data; else what type it is."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Path | UUID):
        return str(value)
    if isinstance(value, str):
        return value if len(value) <= TEXT_CHARS_MAX else f"<text of {len(value)} characters>"
    return f"<{type(value).__name__}>"


def _named(process: str) -> structlog.typing.Processor:
    def add_process(_: object, __: str, event: EventDict) -> EventDict:
        event.setdefault("process", process)
        event["pid"] = os.getpid()
        return event

    return add_process


def _in_order(_: object, __: str, event: EventDict) -> EventDict:
    """When, how grave, what, who; then the fields: a line is read from the left."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event", "process", "pid") if name in event}
    return {**first, **event}


def _exception_of(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _chain(exception: BaseException) -> str:
    """The type of an exception, and those that led to it: `FlushFailed from OSError`."""
    names: list[str] = []
    cause: BaseException | None = exception
    while cause is not None and len(names) < FRAMES_MAX:
        names.append(type(cause).__qualname__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return " from ".join(names)


def _places(trace: TracebackType | None) -> str:
    """Where it was raised, innermost last; file names without directories, and no line of source."""
    frames = traceback.extract_tb(trace)[-FRAMES_MAX:]
    text = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return text[-TEXT_CHARS_MAX:]


class _LibraryHandler(logging.Handler):
    """Says that a library logged something, where, and how grave it finds it."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno if record.levelno in _LEVELS else logging.WARNING,
            "library.logged",
            library=record.name,
            place=f"{record.module}:{record.lineno} {record.funcName}",
            exc_info=record.exc_info or None,
        )


_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


def _log_crash(kind: type[BaseException], exception: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger().critical("process.crashed", exc_info=exception.with_traceback(trace))


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:
        name = crash.thread.name if crash.thread else None
        structlog.get_logger().critical("thread.crashed", thread=name, exc_info=crash.exc_value)
