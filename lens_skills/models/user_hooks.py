"""The hooks that a model's user has put on it: seen, or set aside for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def watched(adapter: Any) -> bool:
    """Whether a user's hooks are on the model: TransformerLens hooks or torch hooks."""
    return bool(_users(adapter))


@contextmanager
def set_aside(adapter: Any) -> Iterator[None]:
    """No hook of the user's is on the model inside; afterwards all are back, in their order."""
    found = _users(adapter)
    before = [(hooks, list(hooks.items())) for hooks, _ in found]
    try:
        for hooks, keys in found:
            for key in keys:
                del hooks[key]
        yield
    finally:
        for hooks, items in before:
            hooks.clear()
            hooks.update(items)


def _of_libraries(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(("transformer_lens", "transformers"))


def _users(adapter: Any) -> list[tuple[dict[int, Any], list[int]]]:
    """The tables of torch hooks that hold hooks of the user's, and under which keys."""
    handles = [handle for point in adapter._points.values() for handle in point.fwd_hooks]
    theirs = {handle.hook.id for handle in handles if not _of_libraries(handle.user_hook)}
    found: dict[int, tuple[dict[int, Any], list[int]]] = {}
    for part in [*adapter._parts, *adapter._points.values()]:
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            if not hooks:  # thousands of parts, of which few have any
                continue
            # The bridge works with torch hooks of its own, and transformers leaves some on every
            # model that was once asked for hidden states or attention patterns: they look on.
            keys = [
                key for key, hook in hooks.items()
                if key in theirs or not _of_libraries(hook)
            ]  # fmt: skip
            if keys:
                found[id(hooks)] = (hooks, keys)
    return list(found.values())
