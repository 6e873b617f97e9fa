"""What `nli` fills in: sixty sub-cases, and the words for their slots."""

# Four sets, so that groups can be made finer than a sub-case; all plurals end in -s.
NOUNS = (
    ("baker", "sailor", "poet", "guard", "clerk", "hunter"),
    ("nurse", "farmer", "painter", "pilot", "priest", "cook"),
    ("singer", "dancer", "plumber", "miner", "chef", "knight"),
    ("teacher", "driver", "gardener", "waiter", "soldier", "butler"),
)
# Past and participle are one form, and who does it to whom matters.
TRANSITIVE = (
    "greeted", "praised", "warned", "teased", "hugged", "chased", "blamed", "ignored", "pushed",
    "annoyed",
)  # fmt: skip
INTRANSITIVE = (
    "laughed", "smiled", "sneezed", "danced", "sang", "yawned", "cried", "left", "arrived", "slept",
)  # fmt: skip

# Slots other than people and verbs.
FILLS = {
    "adjective": ("tall", "young", "clever", "tired", "honest", "famous"),
    "near": ("near", "behind", "beside", "opposite"),
    "place": ("in the garden", "at the station", "on the bridge", "in the kitchen"),
    "time": ("before noon", "on Monday", "last night", "after lunch"),
    "manner": ("quietly", "suddenly", "slowly", "politely"),
    "goal": ("win the prize", "please the crowd", "keep the job", "end the quarrel"),
    "lasting": ("laughed", "danced", "slept", "sang", "cried", "smiled"),
    "sweetly": ("sang the song", "read the letter", "drank the milk", "ate the soup"),
    "believed": ("believed", "suspected", "feared"),
    "watched": ("watched", "washed", "answered", "followed", "taught"),
    "trained": ("trained", "washed", "dressed", "taught"),
}

# Slots: {a} {b} {c} people, {as} the first in the plural, {was} agrees with it; {v} {w} something
# done to someone, {i} {j} something done alone; the others of FILLS. Every word of a hypothesis
# stands in its premise; under "subsequence" without a gap; under "constituent" as a clause of its
# own; and each heading holds only what the next one does not.
PATTERNS: dict[str, dict[bool, dict[str, tuple[str, str]]]] = {
    "lexical_overlap": {
        True: {
            "passive_to_active": ("the {a} {was} {v} by the {b}", "the {b} {v} the {a}"),
            "around_preposition": ("the {a} {near} the {b} {v} the {c}", "the {a} {v} the {c}"),
            "around_relative": ("the {a} who {i} {v} the {b}", "the {a} {v} the {b}"),
            "inside_relative": ("the {a} whom the {b} {v} {i}", "the {b} {v} the {a}"),
            "second_object": ("the {a} {v} the {b} and the {c}", "the {a} {v} the {c}"),
            "first_subject": ("the {a} and the {b} {i}", "the {a} {i}"),
            "second_verb": ("the {a} {i} and {v} the {b}", "the {a} {v} the {b}"),
            "around_adverb": ("the {a} {manner} {v} the {b}", "the {a} {v} the {b}"),
            "cleft_subject": ("it was the {a} who {v} the {b}", "the {a} {v} the {b}"),
            "not_only": ("not only the {a} but also the {b} {v} the {c}", "the {a} {v} the {c}"),
        },
        False: {
            "swapped": ("the {a} {v} the {b}", "the {b} {v} the {a}"),
            "passive_as_active": ("the {a} {was} {v} by the {b}", "the {a} {v} the {b}"),
            "object_of_preposition": ("the {a} {near} the {b} {v} the {c}", "the {b} {v} the {a}"),
            "swapped_in_relative": ("the {a} who {v} the {b} {i}", "the {b} {v} the {a}"),
            "joined_subjects": ("the {a} and the {b} {v} the {c}", "the {a} {v} the {b}"),
            "verb_of_relative": ("the {a} {v} the {b} who {w} the {c}", "the {a} {w} the {c}"),
            "subject_of_relative": ("the {a} whom the {b} {v} {w} the {c}", "the {a} {v} the {b}"),
            "crossed_verbs": ("the {a} {i} and the {b} {j}", "the {a} {j}"),
            "cleft_object": ("it was the {a} whom the {b} {v}", "the {a} {v} the {b}"),
            "instead": ("the {a} {v} the {b} instead of the {c}", "the {a} {v} the {c}"),
        },
    },
    "subsequence": {
        True: {
            "adjective": ("{adjective} {as} {i}", "{as} {i}"),
            "second_subject": ("the {a} and the {b} {i}", "the {b} {i}"),
            "first_object": ("the {a} {v} the {b} and the {c}", "the {a} {v} the {b}"),
            "place": ("the {a} {v} the {b} {place}", "the {a} {v} the {b}"),
            "relative_on_object": ("the {a} {v} the {b} who {i}", "the {a} {v} the {b}"),
            "adverb": ("the {a} {i} {manner}", "the {a} {i}"),
            "time": ("the {a} {v} the {b} {time}", "the {a} {v} the {b}"),
            "understood_object": ("the {a} {sweetly}", "the {a} {sweetly:verb}"),
            "purpose": ("the {a} {v} the {b} in order to {goal}", "the {a} {v} the {b}"),
            "comparison": ("the {a} {lasting} longer than the {b}", "the {a} {lasting}"),
        },
        False: {
            "preposition_on_subject": ("the {a} {near} the {b} {i}", "the {b} {i}"),
            "relative_on_subject": ("the {a} who {v} the {b} {i}", "the {b} {i}"),
            "clause_as_object": ("the {a} {believed} the {b} {i}", "the {a} {believed} the {b}"),
            "unmarked_clause": ("while the {a} {watched} the {b} {i}", "the {a} {watched} the {b}"),
            "agent_on_subject": ("the {a} {v} by the {b} {i}", "the {b} {i}"),
            "participle_as_verb": ("the {a} {trained} {place} {i}", "the {a} {trained} {place}"),
            "friend_of": ("the friend of the {a} {i}", "the {a} {i}"),
            "nobody": ("nobody {near} the {a} {i}", "the {a} {i}"),
            "neither": ("neither the {a} nor the {b} {i}", "the {b} {i}"),
            "everyone_but": ("everyone but the {a} {i}", "the {a} {i}"),
        },
    },
    "constituent": {
        True: {
            "because": ("because the {a} {i}, the {b} {v} the {c}", "the {a} {i}"),
            "after": ("after the {a} {v} the {b}, the {c} {i}", "the {a} {v} the {b}"),
            "although": ("although the {a} {i}, the {b} {v} the {c}", "the {b} {v} the {c}"),
            "once": ("once the {a} {v} the {b}, the {c} {i}", "the {c} {i}"),
            "knew_that": ("the {a} knew that the {b} {i}", "the {b} {i}"),
            "forgot_that": ("the {a} forgot that the {b} {v} the {c}", "the {b} {v} the {c}"),
            "noticed_that": ("the {a} noticed that the {b} {i}", "the {b} {i}"),
            "and_before": ("the {a} {i}, and the {b} {v} the {c}", "the {a} {i}"),
            "and_after": ("the {a} {i}, and the {b} {v} the {c}", "the {b} {v} the {c}"),
            "luckily": ("luckily, the {a} {v} the {b}", "the {a} {v} the {b}"),
        },
        False: {
            "if": ("if the {a} {i}, the {b} {v} the {c}", "the {a} {i}"),
            "unless": ("unless the {a} {v} the {b}, the {c} {i}", "the {a} {v} the {b}"),
            "after_if": ("if the {a} {i}, the {b} {v} the {c}", "the {b} {v} the {c}"),
            "after_unless": ("unless the {a} {v} the {b}, the {c} {i}", "the {c} {i}"),
            "claimed_that": ("the {a} claimed that the {b} {i}", "the {b} {i}"),
            "hoped_that": ("the {a} hoped that the {b} {v} the {c}", "the {b} {v} the {c}"),
            "doubted_that": ("the {a} doubted that the {b} {i}", "the {b} {i}"),
            "or_before": ("the {a} {i}, or the {b} {v} the {c}", "the {a} {i}"),
            "or_after": ("the {a} {i}, or the {b} {v} the {c}", "the {b} {v} the {c}"),
            "perhaps": ("perhaps, the {a} {v} the {b}", "the {a} {v} the {b}"),
        },
    },
}
