"""What a user writes: a type checker must know every name of it from the installed package."""

from pathlib import Path

import lens_skills as ls
from lens_skills.interventions import Verdict, ablate, verify
from lens_skills.scoring import Scores

model = ls.load_model("arithmetic-small")
explore, confirm, intervene = ls.tasks.arithmetic(digits=(1,)).split(0.4, 0.2, 0.4, seed=0)
scores: Scores = ls.score(model, explore, metrics=["answer_probability"], n_permutations=100)
chosen = ls.select(scores["answer_probability"], scores["answer_probability"], fdr=0.05)
verdict: Verdict = verify(model, intervene, chosen, do=ablate("mean", over=scores))
place: Path = verdict.save("results/verdict")
names: list[str] = [*verdict.frame()["name"]]
with ls.config(progress=False):
    print(verdict, ls.load(place), names)
