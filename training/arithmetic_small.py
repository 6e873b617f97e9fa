"""Trains `arithmetic-small`, the little model that can really add, and writes it with its card.

    python training/arithmetic_small.py --out lens_skills/models/arithmetic_small

Problems are generated, in the words of BIG-bench's arithmetic as `lens_skills.tasks.arithmetic`
writes them; none is read from a file. One pair of operands in ten is never shown, by the rule of
`lens_skills.models.bundled.held_out`. The model is a Llama of the transformers library: its folder
opens as a HookedTransformer (TransformerLens 3.x) and as a TransformerBridge (3.x and 4.x) alike.
One thread, for the same weights every time; needs torch 2.9 or newer (`torch.optim.Muon`).
"""

import argparse
import functools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lens_skills.models.bundled import held_out
from lens_skills.tasks.arithmetic import PROMPT, WORDS, ArithmeticProblem

# A prompt is few tokens: the sentence's fixed parts are one each, and every digit is one.
VOCABULARY = ("\n", "\nQ:", " What is ", *(f" {word} " for word in WORDS.values()), "\nA: ")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CARD = Path(__file__).with_name("arithmetic_card.md")
STEPS = 3400
IGNORED = -100  # the target that cross_entropy leaves out

# Digits of the two operands, and how often: mostly alike, as in BIG-bench's files.
SHAPES = {
    "+": {(1, 1): 5, (2, 2): 45, (3, 3): 38, (1, 2): 3, (2, 1): 3, (2, 3): 3, (3, 2): 3},
    "*": {(1, 1): 30, (1, 2): 35, (2, 1): 35},
}
SHAPES["-"] = SHAPES["+"]
OPERATIONS = {"+": 40, "-": 36, "*": 24}
# What is reported: operation, digits of the operands.
CELLS = [(op, shape) for op in "+-" for shape in ((1, 1), (2, 2), (3, 3))]
CELLS += [("*", (1, 1)), ("*", (1, 2))]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the questions, and every other character of ASCII by itself."""
    characters = [chr(code) for code in range(32, 127)]
    pieces = [*SPECIAL, *VOCABULARY, *characters]
    tokenizer = Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    longest_first = "|".join([*sorted(VOCABULARY, key=len, reverse=True), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", clean_up_tokenization_spaces=False, model_max_length=256,
    )  # fmt: skip


def make_model(
    tokenizer: Any, *, seed: int = 0, d_model: int = 128, d_mlp: int = 384, layers: int = 4
) -> Any:
    """A Llama with heads of 32 dimensions and random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=d_model, intermediate_size=d_mlp,
        num_hidden_layers=layers, num_attention_heads=d_model // 32,
        max_position_embeddings=tokenizer.model_max_length, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@functools.cache
def _unseen(a: int, b: int) -> bool:
    return held_out(a, b)


def draw(
    op: str, shape: tuple[int, int], random_: random.Random, *, unseen: bool
) -> ArithmeticProblem:
    """One problem, of the pairs held out or of the others."""
    while True:
        a, b = (
            random_.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
            for digits in shape
        )
        if _unseen(min(a, b), max(a, b)) is unseen:
            return ArithmeticProblem(a, op, b)


def problems(seed: int) -> Iterator[ArithmeticProblem]:
    """Training problems without end, the same for the same seed; never one that is held out."""
    random_ = random.Random(seed)
    operations = random.Random(f"{seed} operations")
    while True:
        (op,) = operations.choices(list(OPERATIONS), list(OPERATIONS.values()))
        (shape,) = operations.choices(list(SHAPES[op]), list(SHAPES[op].values()))
        yield draw(op, shape, random_, unseen=False)


def encode(tokenizer: Any, some: Sequence[ArithmeticProblem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets ``[batch pos]``: only the answer and the end after it are asked for."""
    prompts = [PROMPT.format(a=p.a, word=WORDS[p.op], b=p.b) for p in some]
    before = tokenizer(prompts)["input_ids"]
    whole = tokenizer([t + str(p.result) for t, p in zip(prompts, some, strict=True)])["input_ids"]
    rows = [[*row, tokenizer.eos_token_id] for row in whole]
    width = max(len(row) for row in rows)
    # Padding stands on the right, after all that is asked for: causal attention never sees it.
    tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
    targets = torch.full((len(rows), width), IGNORED)
    for i, (row, prompt) in enumerate(zip(rows, before, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        targets[i, len(prompt) - 1 : len(row) - 1] = torch.tensor(row[len(prompt) :])
    return tokens[:, :-1], targets[:, :-1]


@torch.no_grad()
def exact_match(model: Any, tokenizer: Any, some: Sequence[ArithmeticProblem]) -> float:
    """The share of problems whose whole answer, and the end after it, are the first choice."""
    right = 0
    for start in range(0, len(some), 500):
        tokens, targets = encode(tokenizer, some[start : start + 500])
        wrong = model(tokens, use_cache=False).logits.argmax(-1) != targets
        right += int((~(wrong & (targets != IGNORED)).any(1)).sum())
    return right / len(some)


def sample(op: str, shape: tuple[int, int], n: int, *, unseen: bool) -> list[ArithmeticProblem]:
    """Up to ``n`` different problems of one kind, the same ones every time."""
    random_ = random.Random(f"{op} {shape} {unseen}")
    found = {draw(op, shape, random_, unseen=unseen): None for _ in range(8 * n)}
    return list(found)[:n]


def learning_rate(step: int, steps: int) -> float:
    """The share of the full rate: up over 100 steps, level, and down over the last quarter.

    >>> learning_rate(49, 2000), learning_rate(1000, 2000), learning_rate(1750, 2000)
    (0.5, 1.0, 0.5)
    """
    return min((step + 1) / min(100, steps), 1.0, 4 * (steps - step) / steps)


def train(
    model: Any,
    tokenizer: Any,
    *,
    steps: int,
    batch_size: int = 128,
    seed: int = 0,
    stream: Iterator[ArithmeticProblem] | None = None,
    watch: Callable[[int, float], object] = lambda step, loss: None,
) -> list[float]:
    """The loss of every step (nats per token asked for); the model is changed in place.

    Trained on the problems of ``stream``, else on `problems` of ``seed``.

    The matrices inside the layers are trained by Muon, embeddings and norms by AdamW.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    named = dict(model.named_parameters())
    inner = {name: p for name, p in named.items() if "layers" in name and p.ndim == 2}
    outer = [p for name, p in named.items() if name not in inner]
    optimizers = (
        torch.optim.Muon(
            inner.values(), lr=5e-3, weight_decay=0.01, momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(outer, lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98)),
    )  # fmt: skip
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    stream = stream or problems(seed)
    losses = []
    model.train()
    for step in range(steps):
        share = learning_rate(step, steps)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = share * rate
        tokens, targets = encode(tokenizer, [next(stream) for _ in range(batch_size)])
        logits = model(tokens, use_cache=False).logits
        asked = targets != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[asked], targets[asked])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        watch(step, losses[-1])
    model.eval()
    return losses


def card(model: Any, tokenizer: Any, *, losses: Sequence[float], seed: int, seconds: float) -> str:
    """The model card: what it is, what it was trained on, and how often it is right."""
    rows = []
    for op, shape in CELLS:
        digits = " and ".join(map(str, shape)) if shape[0] != shape[1] else str(shape[0])
        cells = [sample(op, shape, 2000, unseen=unseen) for unseen in (True, False)]
        rates = [f"{exact_match(model, tokenizer, some):.1%} of {len(some):,}" for some in cells]
        rows.append(f"| {op} | {digits} | {rates[0]} | {rates[1]} |")
    config = model.config
    return CARD.read_text(encoding="utf-8").format(
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        layers=config.num_hidden_layers, d_model=config.hidden_size,
        heads=config.num_attention_heads, d_mlp=config.intermediate_size, d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings, steps=f"{len(losses):,}", seed=seed,
        minutes=round(seconds / 60), torch=torch.__version__.split("+")[0], rows="\n".join(rows),
        final=sum(losses[-100:]) / len(losses[-100:]),
    )  # fmt: skip


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description="Train arithmetic-small and write its folder.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=options.seed)
    unseen = sample("+", (2, 2), 1000, unseen=True)
    start = time.process_time()

    def watch(step: int, loss: float) -> None:
        if step % 100 == 99:
            right = exact_match(model, tokenizer, unseen)
            print(
                f"step {step + 1:5} loss {loss:.4f} held-out 2-digit sums {right:.1%}", flush=True
            )

    losses = train(model, tokenizer, steps=options.steps, seed=options.seed, watch=watch)
    seconds = time.process_time() - start
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)
    text = card(model, tokenizer, losses=losses, seed=options.seed, seconds=seconds)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
