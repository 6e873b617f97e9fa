"""One colour, one meaning: told apart with any vision, seen on white, written in one file."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lens_skills.plotting import style

FOLDER = Path(style.__file__).parent
ROLES = (
    "SUPPORTS", "OPPOSES", "MIXED", "COMPENSATED", "DATA", "OTHERS", "CHANCE", "RANDOM",
    "CONTROL_TASK", "DAMAGE",
)  # fmt: skip
# What a person without one kind of cones sees, in linear RGB: Machado, Oliveira and Fernandes
# 2009 (IEEE TVCG 15:1291), severity 1.
VISION = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
APART = 11.0  # CIE 1976: a just noticeable difference is about 2.3


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x = XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str) -> float:
    """The smallest that any vision sees between two colours."""
    return min(
        float(np.linalg.norm(lab(np.array(see) @ linear(one)) - lab(np.array(see) @ linear(other))))
        for see in VISION.values()
    )


def contrast(colour: str) -> float:
    """With white, as in WCAG 2: 1 to 21."""
    return 1.05 / (float(XYZ[1] @ linear(colour)) + 0.05)


def test_the_measures_know_black_white_and_what_red_and_green_are_to_some() -> None:
    assert contrast("#000000") == pytest.approx(21, abs=0.01)
    assert contrast("#FFFFFF") == pytest.approx(1, abs=0.001)
    np.testing.assert_allclose(lab(linear("#FFFFFF")), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab(linear("#FF0000")), [53.24, 80.09, 67.20], atol=0.05)
    assert distance("#B07D00", "#D55E00") < 3  # an ochre and vermilion, which we once confused


FAMILIES = {
    "effects and what they are compared with": {
        name: getattr(style, name) for name in ROLES if name not in ("OTHERS", "CHANCE")
    },
    "evidence": dict(style.EVIDENCE),
    "series": {str(place): colour for place, (colour, _, _) in enumerate(style.SERIES)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_colours_that_meet_are_told_apart_with_any_vision(family: str) -> None:
    pairs = itertools.combinations(FAMILIES[family].items(), 2)
    close = [(a, b) for (a, one), (b, other) in pairs if distance(one, other) < APART]
    assert close == []


@pytest.mark.parametrize("family", FAMILIES)
def test_colours_are_seen_on_white(family: str) -> None:
    """3 to 1 at least, as WCAG asks of graphics."""
    faint = {name: contrast(c) for name, c in FAMILIES[family].items() if contrast(c) < 2.95}
    assert faint == {}
    assert contrast(style.GREY) > 4.5  # of text


def test_more_evidence_is_darker() -> None:
    order = ("associated", "beat the control task", "confirmed", "causal")
    lightness = [lab(linear(style.EVIDENCE[step]))[0] for step in order]
    assert all(a - b > 10 for a, b in itertools.pairwise(lightness))


def test_each_of_several_alike_has_its_own_line_and_marker() -> None:
    for which in range(3):
        assert len({str(look[which]) for look in style.SERIES}) == len(style.SERIES)


def test_no_colour_has_two_meanings() -> None:
    named = {name: getattr(style, name) for name in ROLES} | dict(style.EVIDENCE)
    named |= {f"series {place}": colour for place, (colour, _, _) in enumerate(style.SERIES)}
    named |= {"STAMP": style.STAMP, "PALE": style.PALE, "HATCH": style.HATCH}
    assert len(set(named.values())) == len(named)


def test_no_effect_is_white_on_the_scales_of_signed_values() -> None:
    for scale, low, high in (
        (style.EFFECT_MAP, style.SUPPORTS, style.OPPOSES),
        (style.R_MAP, None, None),
    ):
        assert scale(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.02)
        if low and high:
            assert scale(0.25)[:3] == pytest.approx(to_rgb(low), abs=0.02)
            assert scale(0.75)[:3] == pytest.approx(to_rgb(high), abs=0.02)


HEX = re.compile(r"""["']#[0-9A-Fa-f]{3,8}["']""")
NAMED = re.compile(
    r"""(?:colou?r|cmap|colours|ec|fc|mfc|mec)s?\s*[=:]\s*["'](?!white|none|black)\w+["']|"""
    r"""["'](?:viridis|cividis|magma|RdBu\w*|Blues|Greys|Purples|tab:\w+)["']"""
)


def colours_in(text: str) -> list[str]:
    """Colours and scales that are written where they are used."""
    return [found.group() for pattern in (HEX, NAMED) for found in pattern.finditer(text)]


def test_the_probe_sees_a_colour() -> None:
    for text in ('color="#123456"', "colour = 'red'", 'cmap="viridis"', '"color": "#FFF"'):
        assert colours_in(text), text
    assert colours_in('color=GREY, mfc="none", edgecolor="white"') == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_colour_is_written_but_in_one_file(path: Path) -> None:
    if path.name != "style.py":
        assert colours_in(path.read_text(encoding="utf-8")) == []
