"""What a prompt becomes as the user's turn of a tokenizer's chat template.

The user's turn is the prompt as it is written; the answer opens the assistant's turn. The template
alone decides on a BOS token and on white space around the user's text.
"""

from typing import Any

from lens_skills.errors import LensSkillsError

Chat = bool | str
"""False: plain text. True: the chat template. A text: the same, with this system prompt."""

# The date that Llama 3's template writes where it knows none; a template takes no function.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24",
         "%A": "Friday", "%a": "Fri", "%H": "12", "%M": "00", "%S": "00"}  # fmt: skip
_PIN = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _DATE.items())
    + " }}{% endmacro %}"
)
_MARK = "\ue000"  # of the private use area: no text holds it


def render(tokenizer: Any, name: str, chat: Chat, text: str) -> str:
    """The template's text: system prompt, the user's turn, the opening of the assistant's.

    A date that the template writes is always the same one (26 July 2024), so that numbers do not
    change overnight. A beginning-of-sequence token in front of the prompt is left out: the
    template puts its own, if any.

    Raises:
        LensSkillsError: No template, one that refuses these turns, or a text that is in it already.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise LensSkillsError(
            f"chat={chat!r}, but the tokenizer of {name} has no chat template. Leave chat out, or "
            "set model.tokenizer.chat_template."
        )
    bos = tokenizer.bos_token
    before = _apply(tokenizer, name, chat, _MARK).partition(_MARK)[0]
    bare = before.removeprefix(bos or "")
    marked = any(bare.startswith(token) for token in tokenizer.get_added_vocab())
    if bare.strip() and (text.startswith(before) or (marked and text.startswith(bare))):
        raise LensSkillsError(
            f"chat={chat!r} puts prompts into the chat template, but this one is in it already: "
            f"{text[:60]!r}. Give the user's text alone, or leave chat out."
        )
    return _apply(tokenizer, name, chat, text.removeprefix(bos or ""))


def own_text(tokenizer: Any, name: str, chat: Chat, text: str) -> tuple[int, int]:
    """Where the user's own text begins and ends in what `render` gives, in characters.

    Raises:
        LensSkillsError: The template writes the prompt otherwise than it is.
    """
    whole = render(tokenizer, name, chat, text)
    before, _, after = _apply(tokenizer, name, chat, _MARK).partition(_MARK)
    if whole.startswith(before) and whole.endswith(after):
        return len(before), len(whole) - len(after)
    start = whole.rfind(text.strip())
    if start < 0:
        raise LensSkillsError(
            f"the chat template of {name} writes the prompt {text[:60]!r} otherwise than it is, so "
            "no span of it can be found. Read 'last' or an index."
        )
    return start, start + len(text.strip())


def closing(tokenizer: Any, name: str, chat: Chat) -> str:
    """What the template writes behind an answer."""
    return _apply(tokenizer, name, chat, "Q", _MARK).rpartition(_MARK)[2]


def _apply(tokenizer: Any, name: str, chat: Chat, text: str, answer: str = "") -> str:
    turns = [{"role": "user", "content": text}]
    if answer:
        turns.append({"role": "assistant", "content": answer})
    if isinstance(chat, str):
        turns.insert(0, {"role": "system", "content": chat})
    try:
        written = tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=not answer,
            chat_template=f"{_PIN}{written}" if "strftime_now" in written else None,
        )
    except Exception as error:  # a template is a program: it may raise anything
        roles = " and ".join(turn["role"] for turn in turns)
        way = (
            "Say chat=True and put the system prompt into the prompts."
            if isinstance(chat, str)
            else "Leave chat out, or set another model.tokenizer.chat_template."
        )
        raise LensSkillsError(
            f"the chat template of {name} does not take turns of {roles}: "
            f"{str(error).strip() or type(error).__name__}. {way}"
        ) from error
