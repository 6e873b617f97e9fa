"""skill_mix: balanced over skills and topics, and files that say which of their lines is wrong."""

from collections import Counter
from pathlib import Path

import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.tasks.skill_mix import (
    Skill,
    own_skills,
    own_topics,
    read_skills,
    read_topics,
    skill_mix,
)

HEADER = "category,skill,definition,example,comments,status,added by\r\n"


@pytest.mark.parametrize(("k", "n"), [(1, None), (2, None), (3, None), (2, 100), (4, 55)])
def test_every_skill_and_every_topic_comes_equally_often(k: int, n: int | None) -> None:
    task = skill_mix(k=k, n=n)
    asked = Counter(skill.name for skill in own_skills() for e in task if e.labels[skill.name])
    topics = Counter(example.group for example in task)
    assert max(asked.values()) - min(asked.values()) <= 1
    assert max(topics.values()) - min(topics.values()) <= 1
    assert sum(asked.values()) == k * len(task)
    assert len({(e.group, e.covariates["skills"]) for e in task}) == len(task)
    if n is None:
        assert len(task) == -(-len(own_topics()) * len(own_skills()) // k)


def test_an_example_names_its_topic_and_explains_its_skills() -> None:
    own = {skill.name: skill for skill in own_skills()}
    for example in skill_mix(k=3, n=40):
        asked = [name for name, value in example.labels.items() if value == 1]
        assert len(asked) == example.covariates["k"] == 3
        assert set(example.labels) == set(own)
        assert example.covariates["skills"] == " + ".join(sorted(asked)) == example.kind
        assert example.group == example.covariates["topic"]
        assert example.answer is None
        assert f"about {example.group}" in example.prompt
        assert "at most 3 sentences" in example.prompt
        assert not example.prompt[-1].isspace()
        for name, skill in own.items():
            explained = f"{name}: {skill.definition}\nExample: {skill.example}" in example.prompt
            assert explained == (name in asked)


def test_a_seed_draws_one_task_and_another_another() -> None:
    assert skill_mix(n=50).fingerprint() == skill_mix(n=50).fingerprint()
    assert skill_mix(n=50).fingerprint() != skill_mix(n=50, seed=1).fingerprint()


def test_a_split_holds_other_topics_and_all_skills() -> None:
    explore, confirm = skill_mix().split(0.5, 0.5, seed=0)
    assert not set(explore.groups) & set(confirm.groups)
    for skill in own_skills():
        assert 0.05 < explore.column(skill.name).mean() < 0.15
        assert 0.05 < confirm.column(skill.name).mean() < 0.15


def test_all_there_is() -> None:
    task = skill_mix(["simile", "rhyme", "tricolon"], ["Chess", "Wool"], k=2, n=6)
    assert {(e.group, e.covariates["skills"]) for e in task} == {
        (topic, pair)
        for topic in ("Chess", "Wool")
        for pair in ("rhyme + simile", "simile + tricolon", "rhyme + tricolon")
    }
    with pytest.raises(LensSkillsError, match=r"n=7.*1 to 6 examples"):
        skill_mix(["simile", "rhyme", "tricolon"], ["Chess", "Wool"], k=2, n=7)
    assert len(skill_mix(["simile", "rhyme"], ["Wool"])) == 1  # never more than there are


def test_a_wording_of_ones_own() -> None:
    one = skill_mix(n=1, k=2, wording="On {topic}: {skills}.")[0]
    first, second = one.kind.split(" + ")
    forms = {f"On {one.group}: {first} and {second}.", f"On {one.group}: {second} and {first}."}
    assert one.prompt in forms
    assert skill_mix(n=1, k=1, wording="{topic}{definitions}{{}}")[0].prompt.endswith("{}")
    for wording, message in [
        ("{topic} {answer}", "names {answer}"),
        ("{skills}", "must name {topic}"),
        ("{topic}", "must name {topic}"),
        ("{topic", "no template"),
    ]:
        with pytest.raises(LensSkillsError, match=message):
            skill_mix(wording=wording)


def test_skills_of_ones_own_beside_ours() -> None:
    pun = Skill("pun", "Plays with two meanings.", "I was board.")
    task = skill_mix([pun, "simile"], ["Chess"], k=2)
    assert list(task[0].labels) == ["pun", "simile"]
    with pytest.raises(LensSkillsError, match="no skill 'metaphr' among ours: alliteration"):
        skill_mix(["metaphr"])
    with pytest.raises(LensSkillsError, match="named twice"):
        skill_mix(["simile", "simile"])
    for k in (0, 21):
        with pytest.raises(LensSkillsError, match=f"k={k}"):
            skill_mix(k=k)
    for topics in ([], ["Wool", "Wool"]):
        with pytest.raises(LensSkillsError, match="at least one topic"):
            skill_mix(topics=topics)


def test_the_released_files(shared_data: Path) -> None:
    folder = shared_data / "skill_mix"
    skills = read_skills(folder / "skills.csv")
    assert [skill.name for skill in skills][:2] == ["self serving bias", "accident (fallacy)"]
    assert len(skills) == 10
    assert skills[6].category == "logical"
    task = skill_mix(folder / "skills.csv", str(folder / "topics.txt"), k=3, n=60)
    assert len(task.groups) == 10
    assert set(task[0].labels) == {skill.name for skill in skills}
    assert "Example: Cutting people with knives is a crime." in "".join(e.prompt for e in task)


def test_quoted_cells_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "skills.csv"
    body = 'lit,irony,"Says, in short,\nthe ""opposite"".", Lovely. ,,keep,\r\n\r\n'
    path.write_bytes(("\ufeff" + HEADER + body).encode())
    assert read_skills(path) == (
        Skill("irony", 'Says, in short,\nthe "opposite".', "Lovely.", "lit"),
    )


GOOD = 'lit,irony,"Says the\nopposite.",Lovely.,,,\r\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("skill,definition\na,b\n", "line 1: no column 'example', only skill, definition"),
        (HEADER, "no skill"),
        (HEADER + GOOD + "lit,pun,a joke\r\n", "line 4: 3 cells, where line 1 has 7 columns"),
        (HEADER + GOOD + "lit,pun,a, b,c,d,e,f\r\n", "line 4: 8 cells"),
        (HEADER + GOOD + "lit,,a,b,c,d,e\r\n", "line 4: the skill is empty"),
        (HEADER + GOOD + "lit,pun, ,b,c,d,e\r\n", "line 4: the definition is empty"),
        (HEADER + GOOD + "\r\nlit,irony,a,b,c,d,e\r\n", "line 5: the skill 'irony' is there"),
        (HEADER + GOOD + 'lit,pun,"a,b,c,d,e\r\nlit,x,y,z,,,\r\n', "line 4: unexpected end"),
        (HEADER + GOOD + 'lit,pun,"a"b,c,d,e,f\r\n', "line 4: .*expected after"),
    ],
)
def test_a_malformed_list_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "skills.csv"
    path.write_bytes(text.encode())
    with pytest.raises(LensSkillsError, match=message):
        skill_mix(path)


def test_topics_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("Chess\n\n Wool \n")
    assert read_topics(path) == ("Chess", "Wool")
    path.write_text("Chess\n\nWool\nChess\n")
    with pytest.raises(LensSkillsError, match="line 4: the topic 'Chess'"):
        skill_mix(topics=path)
    path.write_text("\n \n")
    with pytest.raises(LensSkillsError, match="holds no topic"):
        skill_mix(topics=str(path))
    with pytest.raises(LensSkillsError, match="cannot read"):
        skill_mix(topics=tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LensSkillsError, match="cannot read"):
        skill_mix(skills=path)
