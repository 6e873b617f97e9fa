"""A smoke run of the package as it was installed: python -I .ci/smoke.py FOLDER

`-I` leaves the repository out of the path, so that only what was installed can be found. A task is
scored, confirmed and put on trial with the little model that comes along, saved, opened again and
reported; then the shell does a step of its own. No network, half a minute.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

place = Path(sys.argv[1]).resolve()
os.environ |= {"LENS_SKILLS_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1"}

import lens_skills as ls  # noqa: E402  after the settings above

home = Path(ls.__file__).parent
assert home.is_relative_to(Path(sys.prefix).resolve()), f"{home} was not installed here"
assert ls.__version__ == version("lens-skills")
assert (home / "py.typed").is_file()
assert (home / "__init__.pyi").is_file()
for name in ls.__all__:
    getattr(ls, name)

with ls.config(progress=False):
    model = ls.load_model("arithmetic-small")
    task = ls.tasks.arithmetic(digits=(1,), seed=0)[:160]
    explore, confirm, intervene = task.split(0.4, 0.3, 0.3, seed=0)
    scores = ls.score(model, explore, metrics=["answer_probability"], n_permutations=100)
    top = scores["answer_probability"].top(20)
    chosen = ls.select(
        scores["answer_probability"],
        ls.score(model, confirm, metrics=["answer_probability"], neurons=top)["answer_probability"],
        fdr=0.2,
    )
    effects = ls.sweep(model, intervene, top[:3], metric="answer_probability", do=ls.ablate("zero"))
    for number, result in enumerate((scores, chosen, effects)):
        result.save(place / f"result-{number}")
        assert repr(ls.load(place / f"result-{number}")) == repr(result)
    page = ls.report(place / "result-2", place / "report.html")
    assert page.stat().st_size > 10_000

shell = Path(sys.executable).with_name("lens-skills")
asked = ["score", "arithmetic", "--model", "arithmetic-small", "--metric", "entropy"]
for line in (["--version"], [*asked, "--limit", "120", "--out", "run"], ["show", "run"]):
    ran = subprocess.run([shell, *line], cwd=place, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"lens-skills {' '.join(line)}: {ran.stderr}"
print(f"lens-skills {ls.__version__} in {home}: the smoke run passed.")
