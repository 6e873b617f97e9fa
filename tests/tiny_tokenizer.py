"""The tokenizer of the tiny models; importing it changes nothing, unlike the conftest."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# The words and digits the tasks use, so that a prompt is words to the tiny model and not bytes.
SENTENCES = (
    "The key to the cabinets is on the table. The keys to the cabinet are on the table.",
    "The author near the doctors was here. The authors near the doctor were here.",
    "The boy, the boys, the girl and the girls walk, walks, has, have, does, do.",
    "When Mary and John went to the store, John gave a drink to Mary. Tom and Anna said hello.",
    "What is 3 plus 4? Answer: What is 12 minus 5? What is 6 times 7? A: 0 1 2 3 4 5 6 7 8 9",
    "Premise: The judge saw the actor. Hypothesis: The actor saw the judge. Entailment: yes or no",
    "true false True False and or not if then else a an it he she they we you I",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_tokenizer(sentences: Sequence[str] = SENTENCES, *, digits: bool = True) -> Any:
    """A byte-level BPE tokenizer that adds no BOS; with ``digits`` each is a token of its own."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*alone, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
