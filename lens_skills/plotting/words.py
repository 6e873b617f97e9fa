"""What metrics, sites and positions are called in a figure; names of the user's own stay."""

import re

_METRICS = {
    "logit_diff": "logit difference",
    "first_token_correct": "first token correct",
    "first_token_logprob": "log probability of the first token",
    "answer_probability": "probability of the answer",
    "mean_log_probability": "mean log probability",
}
_SITES = {
    "mlp.hook_post": "MLP activations",
    "mlp.hook_pre": "MLP pre-activations",
    "attn.hook_z": "attention heads",
    "hook_resid_pre": "residual stream before the block",
    "hook_resid_mid": "residual stream after attention",
    "hook_resid_post": "residual stream",
    "hook_mlp_out": "MLP output",
    "hook_attn_out": "attention output",
}
_POSITIONS = {
    "last": "last token",
    "mean": "mean over tokens",
    "max": "largest over tokens",
    "all": "all tokens",
}


def metric_words(name: str) -> str:
    """A metric's name as a reader says it; a name of the user's own stays.

    >>> metric_words("label:plural"), metric_words("logit_diff"), metric_words("my_metric")
    ('plural (label)', 'logit difference', 'my_metric')
    """
    kind, _, rest = name.partition(":")
    if rest and kind in ("label", "covariate"):
        return f"{rest} ({kind})"
    return _METRICS.get(name, name)


def site_words(site: str) -> str:
    """What a hook point holds; several with commas between.

    >>> site_words("mlp.hook_post"), site_words("blocks.3.ln1.hook_scale")
    ('MLP activations', 'blocks.3.ln1.hook_scale')
    """
    names = [part.strip() for part in site.split(",")]
    return ", ".join(_SITES.get(name, name) for name in names if name)


def position_words(position: str) -> str:
    """Where in the prompt.

    >>> position_words("last"), position_words("-3"), position_words("span(key, last)")
    ('last token', 'token −3', 'span(key, last)')
    >>> position_words("count(0.5)"), position_words("count(fitted 3f2a, column:clause)")
    ('tokens above 0.5', 'tokens above their thresholds in column:clause')
    """
    if re.fullmatch(r"[+-]?\d+", position):
        return "token " + position.replace("-", "\N{MINUS SIGN}")
    if counted := re.fullmatch(r"count\((fitted )?([^,]+?)(?:, (.*))?\)", position):
        above = "their thresholds" if counted[1] else counted[2].replace("-", "\N{MINUS SIGN}")
        return f"tokens above {above}" + (f" in {counted[3]}" if counted[3] else "")
    return _POSITIONS.get(position, position)


def place_words(site: str, position: str = "") -> str:
    """What was measured and where.

    >>> place_words("mlp.hook_post", "last")
    'MLP activations, last token'
    """
    return ", ".join(part for part in (site_words(site), position_words(position)) if part)


def shortened(text: str, most: int) -> str:
    """The text in one line of at most so many characters, its end left out where it is longer.

    >>> shortened("one\\ntwo three", 9)
    'one two …'
    """
    line = " ".join(text.splitlines()).replace("\t", " ")
    return line if len(line) <= most else line[: most - 1] + "…"
