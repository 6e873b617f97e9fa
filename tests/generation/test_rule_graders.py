"""Each rule finds what its skill's definition names, and passes by what only looks like it."""

import pytest

from lens_skills.data import Example
from lens_skills.generation.rule_graders import RULES, detectors
from lens_skills.tasks.skill_mix import own_skills

SHOWN = {
    "alliteration": [
        "Seven silver swans swam south.",
        "The phantom of the forest feared fire.",
        "Careful cooks keep clean kettles.",
        "We watched while wild winds whipped the walls.",
        "He was known for his neat and nimble needles.",
    ],
    "anaphora": [
        "We will row. We will rest. We will row again.",
        "Some trains leave early, some trains leave late.",
        "It was cold. It was dark. The road went on.",
        "She kneads the dough, she shapes the loaf, she lights the oven.",
        "Every stone was carried by hand. Every stone was laid by eye.",
    ],
    "rhetorical question": [
        "Who wouldn't want to see the sea?",
        "What’s the point of a kite without wind?",
        "Isn't it wonderful how bread rises?",
        "The door was open. Why bother knocking?",
        'He sighed. "How could anyone be late for that?"',
    ],
    "simile": [
        "The loaf was as hard as a brick.",
        "Her voice rang like a bell.",
        "The boat moved over the water like a swan on a pond.",
        "Thunder rolled as loud and deep as drums.",
        "The wool felt like a cloud.",
    ],
    "hyperbole": [
        "I have told you a million times to lock the door.",
        "This suitcase weighs a ton.",
        "We were bored to death by the speech.",
        "It is the best coffee in the whole world.",
        "The queue took forever.",
        "I am so hungry I could eat a horse.",
    ],
    "statistical claim": [
        "About 30% of the eggs hatch.",
        "Seventy percent of sailors learn to swim.",
        "Four out of five dentists own a mirror.",
        "Half of all households bake at home.",
        "A keeper works, on average, 12 hours a night.",
        "One in three loaves burns.",
    ],
    "modus ponens": [
        "If it rains, the match is off. It is raining. Therefore, the match is off.",
        "If a kite has a tail, then it flies well. This kite has a tail, so it flies well.",
        "If the lamp is lit, ships are near. The lamp is lit tonight. Thus ships are near.",
        "If yeast is alive, dough rises. A baker checked. The yeast is alive. Hence it rises.",
    ],
    "comparison": [
        "Rye bread is heavier than wheat bread.",
        "Sailing takes more patience than strength.",
        "The old clock runs less smoothly than the new one.",
        "This tea is better than that coffee.",
        "There are fewer keepers than lighthouses.",
    ],
    "tricolon": [
        "We packed rope, bread and a map.",
        "The wind was cold, sharp, and sudden.",
        "They cut the clay, shaped the pot, and lit the kiln.",
        "You need a hook, a line, and a little patience.",
    ],
    "dialogue": [
        '"Hold the rope," said the captain.',
        "“Where is the boat?” she asked.",
        'The keeper shouted, "Light the lamp!"',
        'He looked up and said "not today" very quietly.',
        '"Where is the boat?"\n"Behind the reef."',
    ],
    "exclamation": [
        "What a storm!",
        "The bread is ready! Come and eat.",
        'She cried, "Look out!"',
        "How bright the stars are tonight!!",
    ],
    "onomatopoeia": [
        "Bees buzz in the lavender.",
        "The gate creaked in the wind.",
        "The old clock went tick-tock all night.",
        "Rain pattered and the pan sizzled.",
        "Boom! The door flew open.",
    ],
    "rhyme": [
        "The moon was bright,\nit lit the night.",
        "We sailed away at break of day,\nand rested in the quiet bay.",
        "The baker made a cake,\nthe finest he could bake.",
        "A kite is high,\na bird is in the hall,\nit sails the sky,\nand then we hear it call.",
    ],
    "direct address": [
        "Before you dive, check your mask.",
        "You can hear the train at night.",
        "Know this, dear reader: the lamp was lit.",
        "The river is yours.",
    ],
    "antithesis": [
        "It is not a race but a long walk.",
        "Success is not a gift, but a habit.",
        "He came not to praise but to learn.",
        "This isn't a hobby, it's a way of life.",
        "They are not guests, but keepers.",
    ],
    "repetition": [
        "They waited, waited for the tide.",
        "Never, never open that valve.",
        "The train rolled on and on.",
        "Slowly — slowly — the lamp grew dim.",
    ],
    "parenthesis": [
        "My aunt (a retired diver) taught me.",
        "The harbour — empty at that hour — was still.",
        "He paid (as he always did) in coins.",
        "The oven (built in the spring) smoked.",
    ],
    "causal explanation": [
        "The boat sank because the hull was cracked.",
        "Due to the fog, the train was late.",
        "The dough was cold. As a result, it did not rise.",
        "Smoking leads to illness.",
        "The flood was caused by heavy rain.",
    ],
    "chronological order": [
        "First, heat the oven. Then knead the dough.",
        "Next, tie the knot. Finally, pull the rope.",
        "First we rowed, then we rested.",
        "Begin by sanding the wood. After that, oil it. Lastly, let it dry.",
    ],
    "appeal to authority": [
        "Experts agree that sleep matters.",
        "According to historians, the tower leaned early.",
        "Studies have shown that birds dream.",
        "A recent survey found that tea is popular. Doctors often recommend it.",
        "Scientists at the institute say the reef is growing.",
    ],
}

NOT_SHOWN = {
    "alliteration": [
        "The cat sat under the table and watched birds.",
        "City cats chase mice.",  # s, k, ch
        "Think about the towns they told stories in.",  # th and t are two sounds
        "Buying bread buys bread.",  # two words, again and again
        "Honest hours help.",  # only one h is spoken
        "Small boats seldom take silver.",  # three in five words, none of them in a row
    ],
    "anaphora": [
        "The baker woke early. He lit the oven. Bread rose.",
        "The rope is old. The mast is new. The sail is torn.",  # an article is no figure
        "We rowed. They rested.",
        "He said that it was late, and that was that.",
    ],
    "rhetorical question": [
        "What time does the train leave?",
        "How many eggs are in the basket?",
        "He asked who cares for the garden.",
        "Where is the key? Under the mat.",
        "Isn't it wonderful how bread rises.",  # not asked
    ],
    "simile": [
        "I like a strong cup of coffee.",
        "She knits as well as he does.",
        "Call me as soon as possible.",
        "As far as I know, they would like the room.",
        "Bring things like rope and nails.",
        "The boat was as long as ten metres.",
    ],
    "hyperbole": [
        "The bridge cost a million dollars.",
        "It is the best bread in the village.",
        "The ship weighs four hundred tons.",
        "The reef is a thousand years old.",
        "Read it three times.",
    ],
    "statistical claim": [
        "There were 40 boats in the harbour.",
        "The tower was built in 1999.",
        "Five of us went sailing.",
        "It took two hours in the rain.",
        "One in the hand is enough.",
    ],
    "modus ponens": [
        "If it rains, the match is off.",
        "It rained. Therefore, the match was off.",
        "If you like tea, try this one. Coffee is nice. So is water.",
        "If the bell rings, run. The dog sleeps. Therefore the cat eats.",
        "She asked if he could stay, so he stayed.",
    ],
    "comparison": [
        "We ate rather than talked.",
        "More than 20 boats came in.",
        "There is no other way than this, other than by sea.",
        "It is more or less done.",
        "No sooner had it begun than it ended, or whether than when.",
        "She bakes more bread in winter.",
    ],
    "tricolon": [
        "We packed bread and cheese.",
        "On Monday, Ann, and Bob came.",
        "The wind fell, and it grew warm.",
        "When the tide turned, we rowed, and they slept.",
        "However, rope and nails are cheap.",
        "In the long realm of words, comparison and rhyme meet.",
    ],
    "dialogue": [
        'They call it the "cloud".',
        "She said that the boat was late.",
        '"A kite flew over the hill, and the day was bright."',  # a text in quotes
        'The "old town" has narrow streets.',
        "It's the keeper's lamp, and the boat's too.",
        'A 5" pipe and a 7" pipe.',
        'Translate "A thing is like another, using "like" or "as" in a line to show it."',
    ],
    "exclamation": [
        "What a storm.",
        "The value of 5! is 120.",
        "In code, a != b is a test.",
        "He asked for quiet. Did she hear?",
    ],
    "onomatopoeia": [
        "The song was popular.",
        "The housing boom ended.",
        "They took a snap decision to bang the drum slowly, he wrote of pop music.",
        "The human voice is an instrument.",
        "Click the button, then zoom in.",
    ],
    "rhyme": [
        "The moon was bright. The road was long.",
        "He was running. She was singing.",  # grammar rhymes by itself
        "The bread was rough. The wind blew through the bough.",
        "We need a plan. It is a good plan.",
        "They spoke of the nation. It was an invitation.",
    ],
    "direct address": [
        "The young sailor left.",
        '"You must go," said the keeper.',
        "They thanked the crew: thank you was all he wrote.",
        "Youth is short.",
    ],
    "antithesis": [
        "I do not know, but I can ask.",
        "It was not easy, but we did it.",
        "The lamp was small but bright.",
        "They could not see the reef but heard it.",
        "He is not here.",
        "Bread is not only food but memory.",  # denies nothing
        "Eating isn't just a need; it's a feast.",
    ],
    "repetition": [
        "He had had enough.",
        "I know that that is true.",
        "The cat sat on the mat.",
        "Row by row the seats filled, one by one.",
        "It was a boat, a good boat.",
    ],
    "parenthesis": [
        "The tower (1999) still stands.",
        "Compute f(x and y) twice.",
        "It was late — and cold.",
        "Bring rope (twice).",
    ],
    "causal explanation": [
        "She has lived here since 1999.",
        "It was a good cause.",
        "The road led to the river.",
        "So many boats, and so little wind.",
        "They worked for the cause of peace.",
    ],
    "chronological order": [
        "He won first prize.",
        "Then again, it may rain. Next to the door stood a lamp.",
        "It was the first of its kind.",
        "The first boat was late, and the next one sank.",
        "First, heat the oven.",
    ],
    "appeal to authority": [
        "Everything went according to plan.",
        "He wanted expert advice.",
        "She studies at night.",
        "According to size, they stood in a row.",
        "The doctor was late, and the patient left.",
    ],
}


def test_every_skill_of_ours_has_a_rule_and_examples_enough() -> None:
    names = {skill.name for skill in own_skills()}
    assert set(RULES) == set(SHOWN) == set(NOT_SHOWN) == names
    assert all(len(SHOWN[name]) >= 4 and len(NOT_SHOWN[name]) >= 4 for name in names)


@pytest.mark.parametrize(("skill", "text"), [(s, t) for s, some in SHOWN.items() for t in some])
def test_a_text_that_shows_it(skill: str, text: str) -> None:
    assert detectors(text, Example(id="a", prompt="Write."))[skill] == 1


@pytest.mark.parametrize(("skill", "text"), [(s, t) for s, some in NOT_SHOWN.items() for t in some])
def test_a_text_that_only_looks_like_it(skill: str, text: str) -> None:
    assert detectors(text, Example(id="a", prompt="Write."))[skill] == 0


@pytest.mark.parametrize("skill", own_skills(), ids=lambda skill: skill.name)
def test_the_example_a_prompt_gives_shows_the_skill(skill: object) -> None:
    """And its definition, which only talks about it, is no text that every rule is for."""
    found = detectors(skill.example, Example(id="a", prompt="Write."))  # type: ignore[attr-defined]
    assert found[skill.name] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", " \n", "...", "7", "é", '"', "(", "if , then so", "\x00" * 5])
def test_any_text_is_graded(text: str) -> None:
    assert set(detectors(text, Example(id="a", prompt="Write.")).values()) <= {0.0, 1.0}
