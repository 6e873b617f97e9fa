"""Small tasks that a language model may have the skill for; each with twins, foils and groups.

Most are made from the lists of words here; some read the files of a folder (``--data``): the
number-agreement pairs of Marks et al. 2024 (arXiv 2403.19647, ``agreement_pairs/nounpp_*.jsonl``)
and the years of greater-than (Hanna et al. 2023, arXiv 2305.00586,
``greater_than/greater_than_data.csv``).
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.tasks import Task

CAPITALS = """France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Austria Vienna
Greece Athens|Turkey Ankara|Egypt Cairo|Japan Tokyo|China Beijing|India Delhi|Russia Moscow
Poland Warsaw|Hungary Budapest|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen
Ireland Dublin|Scotland Edinburgh|England London|Belgium Brussels|Switzerland Bern|Canada Ottawa
Cuba Havana|Peru Lima|Chile Santiago|Argentina Buenos|Iran Tehran|Iraq Baghdad|Syria Damascus
Lebanon Beirut|Jordan Amman|Israel Jerusalem|Kenya Nairobi|Nigeria Abuja|Ghana Accra|Libya Tripoli
Thailand Bangkok|Vietnam Hanoi|Indonesia Jakarta|Philippines Manila|Australia Canberra
Ukraine Kiev|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb|Mexico Mexico
Afghanistan Kabul|Pakistan Islamabad|Nepal Kathmandu|Taiwan Taipei|Qatar Doha|Venezuela Caracas
Colombia Bogota|Ecuador Quito|Bolivia La|Uruguay Montevideo|Senegal Dakar|Tunisia Tunis
Algeria Algiers|Morocco Rabat|Sudan Khartoum|Ethiopia Addis|Uganda Kampala|Wales Cardiff"""
LANGUAGES = """France French|Germany German|Italy Italian|Spain Spanish|Portugal Portuguese
Greece Greek|Turkey Turkish|Egypt Arabic|Japan Japanese|China Chinese|Russia Russian|Poland Polish
Hungary Hungarian|Norway Norwegian|Sweden Swedish|Finland Finnish|Denmark Danish|Ireland Irish
England English|Iran Persian|Israel Hebrew|Thailand Thai|Vietnam Vietnamese|Ukraine Ukrainian
Romania Romanian|Bulgaria Bulgarian|Serbia Serbian|Croatia Croatian|Korea Korean|Austria German
Mexico Spanish|Peru Spanish|Chile Spanish|Argentina Spanish|Cuba Spanish|Brazil Portuguese
Syria Arabic|Iraq Arabic|Jordan Arabic|Lebanon Arabic|Libya Arabic|Morocco Arabic|Algeria Arabic
Australia English|Jamaica English|Scotland English|Indonesia Indonesian|Netherlands Dutch
Pakistan Urdu|Bangladesh Bengali|Wales Welsh|Nepal Nepali|Angola Portuguese|Colombia Spanish
Ecuador Spanish|Senegal French|Taiwan Chinese|Cyprus Greek|Ghana English|Haiti French"""
ANTONYMS = """hot cold|big small|up down|left right|old new|good bad|fast slow|high low|long short
wet dry|light dark|hard soft|open closed|full empty|rich poor|strong weak|early late|happy sad
love hate|war peace|true false|day night|black white|hot cold|north south|east west|first last
top bottom|front back|inside outside|in out|on off|win lose|buy sell|push pull|give take
start end|begin end|life death|male female|man woman|boy girl|king queen|father mother
brother sister|son daughter|young old|thick thin|wide narrow|deep shallow|near far|loud quiet
clean dirty|safe dangerous|cheap expensive|easy difficult|smooth rough|sharp dull|sweet sour
tall short|heavy light|right wrong|past future|summer winter|above below|before after|more less
many few|always never|yes no|friend enemy|laugh cry|remember forget|arrive leave"""
PAST = """go went|see saw|take took|give gave|come came|know knew|grow grew|fly flew|draw drew
eat ate|drink drank|sing sang|swim swam|begin began|run ran|write wrote|drive drove|ride rode
rise rose|speak spoke|break broke|wake woke|choose chose|steal stole|wear wore|bear bore|tear tore
find found|fight fought|think thought|bring brought|buy bought|catch caught|teach taught
keep kept|sleep slept|feel felt|leave left|meet met|lose lost|sell sold|tell told|hold held
stand stood|understand understood|make made|say said|pay paid|have had|do did|get got|forget forgot
sit sat|win won|hear heard|send sent|spend spent|build built|lead led|feed fed|become became
fall fell|throw threw|blow blew|shake shook|hide hid|bite bit|dig dug|hang hung|strike struck"""
NOUNS = """cat dog car book tree house bird door hand eye hour friend girl boy word letter day year
week month star stone river road street table chair window room king cup ship boat train horse
cow apple egg song story picture number color flower leaf_leaves wolf_wolves knife_knives
wife_wives life_lives child_children man_men woman_women foot_feet tooth_teeth mouse_mice
city_cities country_countries family_families baby_babies lady_ladies party_parties box_boxes
class_classes glass_glasses dish_dishes church_churches bus_buses teacher student doctor soldier
farmer player teacher_teachers"""
DEGREES = """tall small old young fast slow long short high low hard soft warm cold cheap strong
weak rich poor dark bright clean great deep wide thick thin sharp smooth rough loud quiet sweet
near kind smart light tight new near mild bold cool fresh steep calm safe_safer_safest
large_larger_largest late_later_latest nice_nicer_nicest wise_wiser_wisest brave_braver_bravest
simple_simpler_simplest big_bigger_biggest hot_hotter_hottest thin_thinner_thinnest
happy_happier_happiest easy_easier_easiest heavy_heavier_heaviest early_earlier_earliest
busy_busier_busiest pretty_prettier_prettiest dirty_dirtier_dirtiest angry_angrier_angriest"""
WOMEN = """woman girl queen mother sister daughter wife aunt lady actress princess waitress nun
grandmother niece bride widow goddess duchess policewoman businesswoman Mary Sarah Emma Anna Alice
Laura Jane Susan Helen"""
MEN = """man boy king father brother son husband uncle gentleman actor prince waiter monk
grandfather nephew groom widower god duke policeman businessman John James Peter Paul Robert David
Mark Thomas George"""


def _rows(text: str) -> list[tuple[str, str]]:
    pairs = [row.split() for line in text.splitlines() for row in line.split("|")]
    return list(dict.fromkeys((first, second) for first, second in pairs))


def _forms(text: str, endings: Sequence[str]) -> list[tuple[str, ...]]:
    """Each word and its forms: written out with "_", or with the regular endings."""
    found = []
    for word in dict.fromkeys(text.split()):
        parts = tuple(word.split("_"))
        found.append(parts if len(parts) > 1 else (word, *(word + end for end in endings)))
    return list(dict.fromkeys(found))


def _task(
    name: str, rows: Iterable[tuple[str, str, str, str, str]], one: Sequence[str] = ()
) -> Task:
    """Rows of prompt, answer, foil, twin and group; equal prompts once.

    ``one`` are the answers of class 1, where the answers are of two classes.
    """
    found: dict[str, Example] = {}
    for prompt, answer, foil, twin, group in rows:
        if answer != foil:
            found.setdefault(
                prompt,
                Example(f"{name} {len(found)}", prompt, answer=f" {answer}", foil=f" {foil}",
                        corrupted=twin, group=group,
                        labels={"class": int(answer in one)} if one else {}),
            )  # fmt: skip
    return Task(name, list(found.values()))


def _mapped(name: str, text: str, frames: Sequence[str], n_foils: int) -> Task:
    """From a word to another: the foil is one of the first pairs' answer, the twin its prompt."""
    pairs = _rows(text)
    draw, rows = random.Random(0), []
    for word, answer in pairs:
        able = [pair for pair in pairs[:n_foils] if answer not in pair and word not in pair]
        for frame in frames:
            other = draw.choice(able)
            rows.append((frame.format(word), answer, other[1], frame.format(other[0]), word))
    return _task(name, rows)


def capitals() -> Task:
    """ "The capital of France is" -> " Paris"."""
    frames = ("The capital of {} is", "The capital of Canada is Ottawa. The capital of {} is",
              "The capital city of {} is called")  # fmt: skip
    return _mapped("capitals", CAPITALS, frames, 16)


def languages() -> Task:
    """ "Most people in France speak" -> " French"."""
    frames = ("The official language of {} is", "Most people in {} speak",
              "In Japan they speak Japanese. In {} they speak")  # fmt: skip
    return _mapped("languages", LANGUAGES, frames, 20)


def antonyms() -> Task:
    """ "The opposite of hot is" -> " cold"."""
    frames = ("The opposite of noisy is silent. The opposite of {} is",
              "noisy, silent; absent, present; {},", "The opposite of {} is")  # fmt: skip
    return _mapped("antonyms", ANTONYMS, frames, 40)


def past_tense() -> Task:
    """ "Today they go. Yesterday they" -> " went"; the twin asks for the present."""
    rows = []
    for verb, past in _rows(PAST):
        for who in ("they", "we", "you"):
            rows.append((f"Every day {who} {verb}. Yesterday {who}", past, verb,
                         f"Yesterday {who} {past}. Every day {who}", verb))  # fmt: skip
    return _task("past_tense", rows)


def plurals() -> Task:
    """ "I have one cat, but you have two" -> " cats"; the twin asks for the singular."""
    rows = []
    for one, many in (form[:2] for form in _forms(NOUNS, ("s",))):
        for frame in (
            "I have one {}, but you have two",
            "There was one {} here, and now there are ten",
        ):
            twin = f"I have two {many}, but you have one"
            rows.append((frame.format(one), many, one, twin, one))
    return _task("plurals", rows)


def comparatives() -> Task:
    """ "This one is tall, but that one is even" -> " taller"; the twin asks for the superlative."""
    rows = []
    for word, more, _ in _forms(DEGREES, ("er", "est")):
        for frame in (
            "This one is {}, but that one is even",
            "It was {} before, and now it is much",
        ):
            twin = f"This one is {word}, and of all of them it is the"
            rows.append((frame.format(word), more, word, twin, word))
    return _task("comparatives", rows)


def pronouns() -> Task:
    """ "The queen was tired because" -> " she"; the twin is about a man."""
    rows = []
    for woman, man in zip(WOMEN.split(), MEN.split(), strict=True):
        named = woman[0].isupper()
        for frame in ("{} was tired, so", "{} left early because", "{} smiled when"):
            one, other = (frame.format(who if named else f"The {who}") for who in (woman, man))
            rows.append((one, "she", "he", other, f"{woman}, {man}"))
            rows.append((other, "he", "she", one, f"{woman}, {man}"))
    return _task("pronouns", rows, one=("she",))


def nounpp(data: Path) -> Task:
    """Verb number across a phrase with another noun, from the pairs of Marks et al."""
    rows = []
    for file in sorted((data / "agreement_pairs").glob("nounpp_*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            prompt, twin = row["clean_prefix"], row["patch_prefix"]
            # The group is the subject without its ending: singular and plural stay together.
            group = prompt.split()[1].rstrip("s")[:5]
            rows.append((prompt, row["clean_answer"].strip(), row["patch_answer"].strip(), twin,
                         group))  # fmt: skip
    random.Random(0).shuffle(rows)
    return _task("nounpp", rows, one=("are", "have"))


def greater_than(data: Path) -> Task:
    """ "… from the year 1352 to the year 13" -> a tens digit above 5; the foil is one below."""
    rows = (data / "greater_than" / "greater_than_data.csv").read_text(encoding="utf-8")
    found = {}
    for line in rows.splitlines()[1:]:
        prompt, twin, label = line.rsplit(",", 2)
        ten = int(label) // 10
        if not 2 <= ten <= 7:
            continue
        draw = random.Random(prompt)
        answer, foil = draw.randint(ten + 1, 9), draw.randint(0, ten - 1)
        found.setdefault(prompt, Example(
            f"years {len(found)}", prompt, answer=str(answer), foil=str(foil), corrupted=twin,
            labels={"high": int(ten >= 5)}, group=prompt.split()[1]))  # fmt: skip
    examples = list(found.values())
    random.Random(0).shuffle(examples)
    return Task("greater_than", examples)


def sums() -> Task:
    """Sums and differences of one or two digits whose answer is one digit."""
    whole = ls.tasks.arithmetic("+-", digits=(1, 2), n=2000)
    return whole.where(result_digits=1, negative=0)


def problems(op: str, digits: Sequence[int], **kept: Any) -> Task:
    """Arithmetic of one operation, as far as it has these columns; one example per operand pair."""
    whole = ls.tasks.arithmetic(op, digits=digits, n=None if digits == (1,) else 400)
    task = whole.where(**kept) if kept else whole
    words = ", ".join(f"{name} {value}" for name, value in kept.items())
    name = f"{op} {'-'.join(map(str, digits))} digits{', ' if words else ''}{words}"
    return Task(name, list(task))


TASKS: dict[str, Callable[[Path | None], Task]] = {
    "agreement": lambda data: ls.tasks.agreement(),
    "capitals": lambda data: capitals(),
    "plurals": lambda data: plurals(),
    "nounpp": lambda data: nounpp(_folder(data)),
    "ioi": lambda data: ls.tasks.ioi(),
    "greater_than": lambda data: greater_than(_folder(data)),
    "languages": lambda data: languages(),
    "antonyms": lambda data: antonyms(),
    "past_tense": lambda data: past_tense(),
    "comparatives": lambda data: comparatives(),
    "pronouns": lambda data: pronouns(),
    "sums": lambda data: sums(),
}
"""Of language models, by name; from a folder of data where one is needed."""

ARITHMETIC: dict[str, Callable[[Path | None], Task]] = {
    "plus_one_digit": lambda data: problems("+", (1,)),
    "plus_no_carry": lambda data: problems("+", (2,), carry=0),
    "plus_carry": lambda data: problems("+", (2,), carry=1),
    "minus_one_digit": lambda data: problems("-", (1,), negative=0),
    "minus_below_zero": lambda data: problems("-", (1,), negative=1),
    "minus_no_borrow": lambda data: problems("-", (2,), carry=0, negative=0),
    "minus_borrow": lambda data: problems("-", (2,), carry=1, negative=0),
    "minus_below_zero_2": lambda data: problems("-", (2,), negative=1),
    "times_one_digit": lambda data: problems("*", (1,)),
    "times": lambda data: problems("*", (2,)),
    "divided": lambda data: problems("/", (2,)),
}
"""Of arithmetic-small, by name."""

METRICS = {
    "agreement": "label:plural",
    "nounpp": "label:class",
    "pronouns": "label:class",
    "ioi": "label:io_first",
}
"""What methods of association rank by where the answers are of two classes; else by whether the
logit difference is above its median."""

FAMILIES = ({"agreement", "nounpp"}, {"capitals", "languages"})
"""Tasks of one skill, which are no contrast for one another."""


def _folder(data: Path | None) -> Path:
    if data is None:
        raise SystemExit("this task reads files: --data FOLDER, see benchmarks/skill_tasks.py")
    return data


def related(one: str, other: str) -> bool:
    """Whether two tasks are of one skill.

    >>> related("agreement", "nounpp"), related("agreement", "ioi")
    (True, False)
    """
    return one == other or any({one, other} <= family for family in FAMILIES)
