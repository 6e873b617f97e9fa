"""The rows of the calibration table: what is simulated, and the bar its rate is held against.

Imports nothing, so that the pages are written without the package.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row: a finding of the audit, simulated.

    Attributes:
        key: Of its numbers in the file of results.
        what: What is counted, in words.
        low, high: The rates that are right.
        of: Of what it is a share, where not of data sets.
        times: So many times as many data sets as a costly row gets.
    """

    key: str
    what: str
    low: float = 0.0
    high: float = 1.0
    of: str = ""
    times: int = 1

    @property
    def bar(self) -> str:
        """The bar in signs; a dash where every rate will do.

        >>> Row("key", "what", high=0.05).bar, Row("key", "what", low=0.93, high=0.98).bar
        ('≤ .05', '.93–.98')
        """
        low, high = (f"{share:.3f}".lstrip("0").rstrip("0") for share in (self.low, self.high))
        if (self.low, self.high) == (0, 1):
            return "–"
        if self.low == 0:
            return f"≤ {high}" if self.high else "0"
        return f"≥ {low}" if self.high == 1 else f"{low}–{high}"

    def holds(self, rate: float) -> bool:
        """Whether a rate is within the bar."""
        return self.low <= rate <= self.high


_R = {"0": "0", "3": ".3", "7": ".7"}
_GROUPS = (8, 16, 30)
_SKEW = {"normal": "normal", "lognormal": "log-normal"}

ROWS = (
    Row("special", "some neuron is called basis-privileged; the basis is a random one", high=0.05),
    Row("quiet", "a neuron of r = .75 in a quiet layer is called basis-privileged", low=0.95),
    Row("forms_associated", "some neuron that knows word forms only is *associated*", high=0.065),
    Row("forms_confirmed", "such neurons with p ≤ 5 % on confirm", high=0.06, of="neurons"),
    *(
        Row(f"r_uneven_{key}", f"interval of r holds r = {r}: uneven groups", 0.93, 0.98)
        for key, r in _R.items()
    ),
    *(
        Row(f"r_confidence_{key}", f"the same, r = {r}: a computed confidence", 0.93, 0.98)
        for key, r in _R.items()
    ),
    *(
        Row(
            f"size_{key}_{n}",
            f"some neuron is *associated* with {text}; {n} groups",
            high=0.07,
        )
        for key, text in (("log", "the log of its group's size"), ("larger", "the larger groups"))
        for n in (40, 15)
    ),
    Row(
        "confounder_known",
        "a covariate that acts as its square is partialled out, and some neuron *associated* "
        "without a warning: known metric",
        high=0.07,
    ),
    Row("confounder_computed", "the same: computed metric", high=0.07),
    *(
        Row(
            f"control_power_{share}",
            f"a neuron that follows the metric (r = .5) beats the control task; {share} % of the "
            "metric lie between input types",
            low=0.9,
        )
        for share in (10, 30)
    ),
    *(
        Row(
            f"control_size_{share}",
            f"some neuron that knows input types only does; {share} % between",
            high=0.065,
        )
        for share in (30, 100)
    ),
    Row("categories", "some of 12 categories is *associated*, where nothing is", high=0.065),
    *(
        Row(
            f"no_effect_{n}",
            f"0/1 metric, true effect −5 %, δ 2 %: *no effect*; {n} groups",
            high=0.05,
            times=4,
        )
        for n in (16, 30, 60)
    ),
    Row(
        "large",
        "neurons chosen by size alone are causal, without the words *large neuron*",
        high=0.05,
        of="neurons",
    ),
    Row("strong", "a neuron of middling size and great effect is, among those", low=0.9),
    Row("random_edges", "random edges are *confirmed*", high=0.05, of="edges"),
    Row("strong_edges", "edges of 5 % of the total each are, among those", low=0.8, of="edges"),
    Row("lists", "a neuron's word differs with the list it stands in", high=0.0),
    *(
        Row(
            f"coverage_{kind}_{n}",
            f"interval of a mean effect holds it: {text}, {n} uneven groups"
            + (", or is said not to be trusted" if kind == "lognormal" else ""),
            0.92,
            0.97 if kind == "normal" else 1.0,
            times=4,
        )
        for kind, text in _SKEW.items()
        for n in _GROUPS
    ),
    *(
        Row(f"doubted_{n}", f"normal effects, {n} uneven groups: the same is said", times=4)
        for n in _GROUPS
    ),
    *(
        Row(
            f"infinite_{n}",
            f"an interval has an infinite end: a tenth of {n} uneven groups react",
            high=0.0,
            times=4,
        )
        for n in _GROUPS
    ),
)
