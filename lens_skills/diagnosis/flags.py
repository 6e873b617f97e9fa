"""`flag`: what the diagnostics of a neuron come to, in words; every threshold stands here."""

from dataclasses import dataclass

REGULATOR = "generic confidence regulator"
SKILL = "skill neuron"
NEITHER = "neither shown"
WORDS = (SKILL, REGULATOR, NEITHER)

FAR = 0.95
"""An outlier of its own layer: beyond 95 % of its neurons. The published entropy neurons are
told by standing apart from their layer's cloud (in norm and in variance), not by a fixed value,
which differs between models."""

MOSTLY = 0.5
"""More than half: of the effect through the norm's scale (the lower end of its interval), or of
the squared logit write along the frequency direction."""

ALPHA = 0.05
"""An ablation matters where so few random neurons of the layer move as much: of the task's metric
the share adjusted over all neurons diagnosed (Benjamini–Hochberg), since one hit in twenty would
else be a skill neuron by chance."""


@dataclass(frozen=True)
class Evidence:
    """The numbers that decide; see `Regulators` for what they are.

    Attributes:
        norm, variance, null, frequency: Percentiles within the layer, 0 to 1.
        frequency_share: Squared cosine with the frequency direction.
        mediated_low: Lower end of the LN-mediated fraction, on neutral text.
        q_task: Rank of |effect| on the task among random neurons of the layer, adjusted.
        signed: Whether the interval of the mean effect on the task leaves out 0.
        p_neutral: Rank of |effect| on neutral text, not adjusted.
    """

    norm: float
    variance: float
    null: float
    frequency: float
    frequency_share: float
    mediated_low: float
    q_task: float
    signed: bool
    p_neutral: float


def flag(evidence: Evidence) -> tuple[str, str]:
    """The word for a neuron, and why.

    *generic confidence regulator*: its ablation moves the model's entropy on neutral text more
    than that of random neurons, and it does so as an entropy neuron (large ‖w_out‖, even logits,
    in the null space, through the norm's scale) or as a frequency neuron. *skill neuron*: its
    ablation moves the metric on the task one way, more than random neurons' do, and on neutral
    text no more than a random neuron's. *neither shown*: anything else; the reason says what is
    missing.

    >>> flag(Evidence(0.5, 0.5, 0.5, 0.5, 0.0, 0.0, q_task=0.01, signed=True, p_neutral=0.6))[0]
    'skill neuron'
    """
    apart = {
        "a large norm": evidence.norm >= FAR,
        "even logits": evidence.variance <= 1 - FAR,
        "the null space": evidence.null >= FAR,
    }
    through = evidence.mediated_low > MOSTLY
    entropy_like = all(apart.values()) and through
    frequency_like = evidence.frequency >= FAR and evidence.frequency_share > MOSTLY
    on_task, on_neutral = evidence.q_task <= ALPHA, evidence.p_neutral <= ALPHA
    kinds = [
        words
        for words, holds in (
            ("writes to the null space and acts through the final norm", entropy_like),
            ("writes along the frequency direction", frequency_like),
        )
        if holds
    ]
    if kinds and on_neutral:
        return REGULATOR, f"{' and '.join(kinds)}, on neutral text too"
    if kinds:
        return NEITHER, f"{' and '.join(kinds)}, but hardly moves neutral text"
    if on_task and not evidence.signed:
        return NEITHER, "its ablation moves the task, but up and down: on average not surely"
    if on_task and not on_neutral:
        return SKILL, "its ablation moves the task and not neutral text"
    if on_task:
        hints = [words for words, holds in apart.items() if holds]
        hints += ["the norm's scale"] * through
        seen = f" (of a regulator it has {', '.join(hints)})" if hints else ""
        return NEITHER, f"its ablation moves the task and neutral text alike{seen}"
    return NEITHER, "its ablation is not shown to move the task more than a random neuron's"
