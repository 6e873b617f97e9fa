"""Which block a hook point belongs to, told by its name."""

import re

EMBEDDING = "hook_embed"
"""Where token embeddings enter, before positions are added."""
BEFORE_BLOCKS = -1
"""The floor of the embedding's hook points, below block 0."""


def layer_of(name: str) -> int | None:
    """The block of a hook point, `BEFORE_BLOCKS` for the embedding's, None after the last block.

    >>> layer_of("blocks.3.mlp.hook_post"), layer_of("hook_embed"), layer_of("ln_final.hook_scale")
    (3, -1, None)
    """
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1))
    embedding = re.match(
        r"(hook_embed|hook_pos_embed|hook_tokens|embed\.|pos_embed\.|rotary)", name
    )
    return BEFORE_BLOCKS if embedding else None
