"""Tracebacks of the user's code, without the frames of those who called it."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from types import CodeType, FrameType, TracebackType


def own_traceback(error: BaseException, machinery: Collection[str] = ()) -> str:
    """The traceback as text, from the first frame that is the user's; empty if there is none.

    A syntax error has no frame of its own but names its place: it is always shown.

    Args:
        error: the exception.
        machinery: file names whose frames are not the user's, beside those of importlib.
    """
    start = first_own_frame(error, machinery)
    if start is None and not isinstance(error, SyntaxError):
        return ""
    shown = traceback.TracebackException(type(error), error, start)
    _strip(shown, machinery, set())
    return "".join(shown.format()).rstrip("\n") + "\n"


def first_own_frame(error: BaseException, machinery: Collection[str] = ()) -> TracebackType | None:
    """The first frame of the user's code; None when the exception was raised before any of it ran."""
    trace = error.__traceback__
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename, machinery):
        trace = trace.tb_next
    return trace


def stack_above(frame: FrameType | None, code: CodeType) -> str:
    """The stack of the user's code that runs now as text, innermost call last.

    Args:
        frame: the innermost one.
        code: what has called the user's, directly or through its own file; empty when it is not on the stack.
    """
    frames = []
    while frame is not None and frame.f_code is not code:
        frames.append(frame)
        frame = frame.f_back
    if frame is None:
        return ""
    while frames and frames[-1].f_code.co_filename == code.co_filename:
        frames.pop()
    return "".join(traceback.StackSummary.extract((each, each.f_lineno) for each in reversed(frames)).format())


def _strip(shown: traceback.TracebackException, machinery: Collection[str], seen: set[int]) -> None:
    """Take machinery out of the middle of a traceback too, and of the tracebacks of its causes."""
    if id(shown) in seen:
        return
    seen.add(id(shown))
    kept = [frame for frame in shown.stack if not _is_machinery(frame.filename, machinery)]
    shown.stack = traceback.StackSummary.from_list(kept)
    for other in (shown.__cause__, shown.__context__):
        if other is not None:
            _strip(other, machinery, seen)


def _is_machinery(filename: str, machinery: Collection[str]) -> bool:
    return filename.startswith(("<frozen importlib", "<frozen runpy")) or filename in machinery
