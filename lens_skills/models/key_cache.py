"""What a model can do with keys and values that were kept, and under which name it takes them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def keeps_keys(adapter: Any) -> bool:
    """Whether blocks run on keys and values that were kept: what the model itself says of it."""
    if adapter.implementation == "hooked":
        return adapter.model.cfg.positional_embedding_type != "shortformer"
    kept = cache_argument(adapter._accepts) is not None
    return kept and {"use_cache", "position_ids"} <= adapter._accepts


def cache_argument(accepts: Iterable[str]) -> str | None:
    """What a Hugging Face forward calls its keys and values: transformers 5.24 renamed them.

    >>> cache_argument(["input_ids", "cache"]), cache_argument(["past_key_values", "cache"])
    ('cache', 'past_key_values')
    >>> cache_argument(["input_ids"])
    """
    return next((name for name in ("past_key_values", "cache") if name in accepts), None)


@contextmanager
def cache_handed_on(adapter: Any) -> Iterator[None]:
    """TransformerLens's attention finds the cache inside, whatever transformers calls it.

    Its bridges look for ``past_key_values`` and silently compute without the ones handed over as
    ``cache``. Those that call the original attention are left alone.
    """
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    def rename(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("cache") is not None and "past_key_values" not in kwargs:
            return args, {**kwargs, "past_key_values": kwargs["cache"]}
        return None

    handles: list[Any] = []
    try:
        if cache_argument(adapter._accepts) == "cache":
            for part in adapter._parts:
                own = isinstance(part, AttentionBridge)
                if own and type(part).forward is not AttentionBridge.forward:
                    handles.append(part.register_forward_pre_hook(rename, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
