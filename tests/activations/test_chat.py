"""Chat templates: every verb reads the tokens that apply_chat_template gives, and no others.

The oracle is plain transformers: one prompt at a time, with forward hooks.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lens_skills as ls
from lens_skills import circuits, diagnostics, explanation, interventions
from lens_skills.activations import evaluate, span, stream
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import ablate, edited, hooks_of, patch
from lens_skills.models import as_adapter, load_model, with_soft_prompt
from tests.tiny_tokenizer import SENTENCES, tiny_tokenizer

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n"
        "{{ m['content'] | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|start|>{{ m['role'] | replace('assistant', 'model') }}\n"
        "{{ m['content'] | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
    ),
    "instruct": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "<|start|> {{ m['content'].strip() }} <|end|>{% else %}{{ m['content'].strip() }}</s>"
        "{% endif %}{% endfor %}"
    ),
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]
NEURON = "L1N5"


def tokenizer_of(style: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = TEMPLATES[style]
    return tokenizer


@pytest.fixture(scope="module")
def hf() -> Any:
    """A tiny Llama whose vocabulary holds the marks of all templates."""
    config = LlamaConfig(
        vocab_size=len(tokenizer_of("chatml")),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def opened(hf: Any) -> Any:
    return load_model(hf, tokenizer=tokenizer_of("chatml"))


@contextmanager
def template(model: Any, text: str) -> Iterator[Any]:
    old = model.tokenizer.chat_template
    model.tokenizer.chat_template = text
    try:
        yield model
    finally:
        model.tokenizer.chat_template = old


@pytest.fixture(params=list(TEMPLATES))
def model(request: Any, opened: Any) -> Iterator[Any]:
    with template(opened, TEMPLATES[request.param]) as found:
        yield found


@pytest.fixture
def chatml(opened: Any) -> Any:
    return opened


@pytest.fixture(scope="module")
def task() -> ls.Task:
    """Ten nouns in three frames; the twin is another number, of as many tokens."""
    nouns = ["key", "author", "boy", "girl", "doctor", "judge", "actor", "cabinet", "table", "tom"]
    frames = ["The {} is", "So the {} walk", "Here the {} near it"]
    return ls.Task(
        "numbers",
        [
            Example(
                f"{noun} {place}",
                frame.format(noun) + " 3? A: ",
                answer=" 4" if (place + row) % 2 else " 5",
                foil=" 5" if (place + row) % 2 else " 4",
                corrupted=frame.format(noun) + " 7? A: ",
                labels={"odd": (place + row) % 2},
                covariates={"noun": noun},
            )
            for row, noun in enumerate(nouns)
            for place, frame in enumerate(frames)
        ],
    )


def template_ids(model: Any, prompt: str, answer: str | None = None, system: str = "") -> Any:
    """What transformers gives for the dialogue; with an answer, its closing is left on."""
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": prompt})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    found = model.tokenizer.apply_chat_template(
        turns, add_generation_prompt=answer is None, return_dict=True
    )
    return list(found["input_ids"])


def first(model: Any, text: str) -> int:
    return model.tokenizer(text.strip(), add_special_tokens=False)["input_ids"][0]


def plain(hf: Any, model: Any, example: Any, edit: float | None = None) -> tuple[Any, float]:
    """The neurons of layer 1 at the last token, and answer against foil, of one prompt."""
    seen: list[Any] = []

    def hook(_: Any, args: Any) -> Any:
        (values,) = args
        if edit is not None:
            values = values.clone()
            values[:, -1, 5] = edit
        seen.append(values[0, -1].detach())
        return (values,)

    handle = hf.model.layers[1].mlp.down_proj.register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = hf(torch.tensor([template_ids(model, example.prompt)])).logits[0, -1]
    handle.remove()
    odds = logits[first(model, example.answer)] - logits[first(model, example.foil)]
    return seen[0], float(odds)


def test_prompt_and_answer_are_the_templates(model: Any) -> None:
    adapter = as_adapter(model).in_chat(True)
    for prompt, answer in (("The keys", " are"), ("What is 3 plus 4? A: ", "7"), ("  it", "yes")):
        (item,) = encode_examples(adapter, [Example("a", prompt, answer)], answers=True)
        assert item.prompt_tokens.tolist() == template_ids(model, prompt)
        whole = template_ids(model, prompt, answer.strip())
        both = [*item.prompt_tokens.tolist(), *item.answer_tokens]
        assert whole[: len(both)] == both
        closing = model.tokenizer.decode(whole[len(both) :])
        assert closing.strip() in ("<|im_end|>", "<|eot|>", "<|end|>", "</s>")


def test_a_system_prompt_is_the_templates_or_refused(model: Any, opened: Any) -> None:
    if "messages[0]" in model.tokenizer.chat_template:
        with pytest.raises(LensSkillsError, match=r"System role not supported.*into the prompts"):
            as_adapter(model).in_chat("Be brief.")
        return
    adapter = as_adapter(model).in_chat("Be brief.")
    assert adapter.encode("The keys") == template_ids(model, "The keys", system="Be brief.")
    with pytest.raises(LensSkillsError, match="chat=''"):
        as_adapter(model).in_chat("")


def test_one_bos_whoever_writes_it(model: Any) -> None:
    adapter = copy.copy(as_adapter(model).in_chat(True))
    once = 1 if "bos_token" in model.tokenizer.chat_template else 0
    adding = copy.deepcopy(model.tokenizer)
    adding._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", adding.bos_token_id)]
    )
    assert adding("x")["input_ids"][0] == adding.bos_token_id
    for tokenizer in (model.tokenizer, adding):
        adapter.tokenizer = tokenizer
        for text in ("The keys", "<s>The keys"):
            ids = adapter.encode(text)
            assert ids.count(adapter.bos_id) == once
            assert ids == adapter.encode("The keys")


@pytest.mark.parametrize("prepends", [True, False])
def test_a_plain_prompt_that_begins_with_bos_has_one(chatml: Any, prepends: bool) -> None:
    old = chatml.cfg.default_prepend_bos
    chatml.cfg.default_prepend_bos = prepends
    try:
        adapter = as_adapter(chatml)
        ids = adapter.encode("<s>The keys")
        assert ids == [adapter.bos_id, *adapter.encode_plain("The keys")]
        (item,) = encode_examples(adapter, [Example("a", "<s>The keys", " are")], answers=True)
        assert item.answer_tokens == tuple(adapter.encode_plain(" are"))
    finally:
        chatml.cfg.default_prepend_bos = old


def test_spans_lie_in_the_users_own_text(model: Any) -> None:
    adapter = as_adapter(model).in_chat(True)
    mark = adapter.encode_plain("start")
    for prompt, text in (("The start of a user model", "user"), ("assistant", "assistant")):
        item = encode_examples(adapter, [Example("a", prompt)], answers=False)[0]
        places = adapter.places_in_turn(prompt, text)
        assert places
        assert text in model.tokenizer.decode(item.prompt_tokens[places].tolist())
        (batch,) = stream(model, [Example("a", prompt)], position=span(text), chat=True)
        (every,) = stream(model, [Example("a", prompt)], position=places[-1], chat=True)
        torch.testing.assert_close(batch.activations, every.activations)
    assert mark
    with pytest.raises(LensSkillsError, match="the span 'user' does not occur"):
        list(stream(model, [Example("a", "The keys")], position=span("user"), chat=True))


def test_score_and_sweep_are_those_of_plain_transformers(
    model: Any, hf: Any, task: ls.Task
) -> None:
    read = [plain(hf, model, example) for example in task]
    values = torch.stack([one[0] for one in read]).double()
    odds = torch.tensor([one[1] for one in read], dtype=torch.float64)
    none = {"n_permutations": 0, "n_controls": 0, "n_rotations": 0}
    scores = ls.score(model, task, metrics="logit_diff", layers=1, chat=True, **none)
    assert scores.provenance["chat"] is True
    wanted = torch.corrcoef(torch.cat([values.T, odds[None]]))[-1, :-1]
    torch.testing.assert_close(scores["logit_diff"].r[0], wanted, atol=1e-4, rtol=0)
    found = ls.sweep(
        model, task, [NEURON], do=ablate("zero"), metric="logit_diff", direct=True, chat=True
    )
    torch.testing.assert_close(found.clean.double(), odds, atol=1e-4, rtol=0)
    without = [plain(hf, model, example, edit=0.0)[1] for example in task]
    effect = torch.tensor(without, dtype=torch.float64) - odds
    assert effect.abs().mean() > 1e-3
    torch.testing.assert_close(found.total[0], effect, atol=1e-4, rtol=0)


def test_verify_in_a_chat_is_the_edit_in_a_chat(chatml: Any, hf: Any, task: ls.Task) -> None:
    mean = torch.stack([plain(hf, chatml, e)[0][5] for e in task]).mean()
    quick: dict[str, Any] = {
        "controls": interventions.controls(sets=0, neurons=21),
        "also": (),
        "pairs": False,
        "by": (),
        "n_draws": 100,
    }
    found = ls.verify(
        chatml, task, [NEURON], do=ablate("mean", over=task), chat=True, delta=0.5, **quick
    )
    wanted = [plain(hf, chatml, e, float(mean))[1] - plain(hf, chatml, e)[1] for e in task]
    torch.testing.assert_close(
        found.effects.total[0], torch.tensor(wanted).double(), atol=1e-4, rtol=0
    )
    assert found.provenance["chat"] is True
    # Neutral sentences stay plain text: what is put in place of the neuron is the chat's mean.
    plainly = ls.verify(chatml, task, [NEURON], do=ablate("zero"), delta=0.5, **quick)
    chat = ls.verify(chatml, task, [NEURON], do=ablate("zero"), chat=True, delta=0.5, **quick)
    assert plainly.tables["unrelated"][0]["effect"] == pytest.approx(
        chat.tables["unrelated"][0]["effect"], abs=1e-6
    )


def test_patches_pair_the_same_tokens_of_twins(chatml: Any, hf: Any, task: ls.Task) -> None:
    twins = [Example("t", str(e.corrupted), e.answer, e.foil) for e in task]
    found = ls.sweep(chatml, task, [NEURON], do=patch("corrupted"), metric="logit_diff", chat=True)
    for place in (0, 7):
        value = float(plain(hf, chatml, twins[place])[0][5])
        wanted = plain(hf, chatml, task[place], value)[1] - plain(hf, chatml, task[place])[1]
        assert float(found.total[0, place]) == pytest.approx(wanted, abs=1e-4)
    everywhere = ls.sweep(
        chatml, task, [NEURON], do=patch(), metric="logit_diff", position="all", chat=True
    )
    assert everywhere.total.abs().sum() > 0


def test_hooks_take_their_source_from_the_chat(chatml: Any, hf: Any, task: ls.Task) -> None:
    mean = torch.stack([plain(hf, chatml, e)[0][5] for e in task]).mean()
    ids = torch.tensor([template_ids(chatml, task[3].prompt)])
    do = ablate("mean", over=task)
    with edited(chatml, [NEURON], do, chat=True), torch.no_grad():
        logits = chatml(ids)[0, -1]
    odds = logits[first(chatml, task[3].answer)] - logits[first(chatml, task[3].foil)]
    assert float(odds) == pytest.approx(plain(hf, chatml, task[3], float(mean))[1], abs=1e-4)
    assert hooks_of(do, chatml, [NEURON], chat=True)


def test_a_circuits_total_is_the_gap_in_the_chat(model: Any, hf: Any, task: ls.Task) -> None:
    # So few groups that no interval stands in the way of a random model's edges.
    few = [replace(example, group=str(example.column("noun"))) for example in task]
    pairs = circuits.equal_length_pairs(model, few, chat=True)
    assert len(pairs) == len(task)
    found = ls.circuit(model, pairs, depth=1, n_edges=3, n_random=40, n_draws=50, chat=True)
    groups = found.provenance["tested_on"]["example_ids"]
    tested = [example for example in pairs if example.id in set(groups)]
    clean = [plain(hf, model, e)[1] for e in tested]
    other = [plain(hf, model, Example("t", str(e.corrupted), e.answer, e.foil))[1] for e in tested]
    gap = sum(other) / len(other) - sum(clean) / len(clean)
    assert abs(float(found.total)) == pytest.approx(abs(gap), abs=1e-4)
    with pytest.raises(LensSkillsError, match="the circuit was made with chat=True"):
        ls.faithfulness(model, pairs, found)


def test_a_prompts_loss_is_that_of_vectors_before_the_answer(
    model: Any, hf: Any, task: ls.Task
) -> None:
    prompt = ls.fit_prompt(model, task, n_tokens=2, n_prefix=1, epochs=1, lr=1e-9, chat=True)
    held = [e for e in task if e.id in set(prompt.provenance["held_out_ids"])]
    table = hf.get_input_embeddings().weight.detach()
    losses = []
    for example in held:
        ids = template_ids(model, example.prompt)
        bos = 1 if ids[0] == model.tokenizer.bos_token_id else 0
        parts = [table[ids[:bos]], prompt.prefix, table[ids[bos:]], prompt.suffix]
        target = model.tokenizer(example.answer.strip(), add_special_tokens=False)["input_ids"]
        parts.append(table[target[:-1]])
        with torch.no_grad():
            out = hf(inputs_embeds=torch.cat(parts)[None]).logits[0].log_softmax(-1)
        places = range(len(out) - len(target), len(out))
        losses.append(-sum(float(out[p, t]) for p, t in zip(places, target, strict=True)))
    wanted = sum(losses) / len(losses)
    assert prompt.curve[-1]["held_out_loss"] == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(LensSkillsError, match=r"soft prompt was made with chat=True.*chat=False"):
        with_soft_prompt(model, prompt)
    assert with_soft_prompt(model, prompt, True).chat is True


def test_gradients_in_a_chat_are_those_of_plain_transformers(
    chatml: Any, hf: Any, task: ls.Task
) -> None:
    found = ls.rank(chatml, task, "logit_diff", method="taylor", layers=1, chat=True)
    total = torch.zeros(48)
    for example in task:
        seen: list[Any] = []
        handle = hf.model.layers[1].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        logits = hf(torch.tensor([template_ids(chatml, example.prompt)])).logits[0, -1]
        handle.remove()
        odds = logits[first(chatml, example.answer)] - logits[first(chatml, example.foil)]
        (slope,) = torch.autograd.grad(odds, seen)
        total += (slope * seen[0])[0, -1].abs().detach()
    torch.testing.assert_close(found.score.float(), total / len(task), atol=1e-4, rtol=1e-3)


def test_chat_and_plain_do_not_mix(chatml: Any, task: ls.Task) -> None:
    none = {"n_permutations": 99, "n_controls": 0, "n_rotations": 0}
    explore, confirm = (
        ls.score(chatml, part, metrics="logit_diff", chat=True, **none)
        for part in task.split(0.5, 0.5)
    )
    plainly = ls.score(chatml, task.split(0.5, 0.5)[1], metrics="logit_diff", **none)
    with pytest.raises(LensSkillsError, match="chat is True on explore and False on confirm"):
        ls.select(explore["logit_diff"], plainly["logit_diff"])
    with pytest.raises(LensSkillsError, match=r"over= is a Scores, which was made with chat=True"):
        ls.sweep(chatml, task, [NEURON], do=ablate("mean", over=explore), metric="logit_diff")
    ls.sweep(chatml, task, [NEURON], do=ablate(over=explore), metric="logit_diff", chat=True)
    chosen = ls.select(explore["logit_diff"], confirm["logit_diff"], fdr=0.99)
    with pytest.raises(LensSkillsError, match=r"the selection was made with chat=True.*Say chat"):
        ls.sweep(chatml, task, chosen, do=ablate("zero"), metric="logit_diff")
    other = template(chatml, TEMPLATES["instruct"])
    with other, pytest.raises(LensSkillsError, match="another chat template"):
        ls.sweep(chatml, task, [NEURON], do=ablate(over=explore), metric="logit_diff", chat=True)
    with pytest.raises(LensSkillsError, match="read with chat=True already"):
        evaluate(as_adapter(chatml).in_chat(True), task, "logit_diff", chat="Be brief.")


def test_a_table_is_read_in_its_own_chat(chatml: Any, task: ls.Task, tmp_path: Any) -> None:
    none = {"n_permutations": 0, "n_controls": 0, "n_rotations": 0}
    table = ls.capture(chatml, task, tmp_path / "table", chat=True)
    assert ls.score(table, task, metrics="label:odd", **none).provenance["chat"] is True
    with pytest.raises(LensSkillsError, match="holds chat True, not Be brief"):
        ls.score(table, task, metrics="label:odd", chat="Be brief.", **none)


def test_checkpoints_of_another_chat_are_refused(
    chatml: Any, task: ls.Task, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"do": ablate("zero"), "metric": "logit_diff"}
    seen: list[dict[str, Any]] = []
    for chat in (False, True, "Be brief."):
        found = ls.sweep(chatml, task, [NEURON], chat=chat, **options)
        seen.append(found.provenance)
    assert [about["chat"] for about in seen] == [False, True, "Be brief."]
    assert "template" not in seen[0]


def test_every_room_reads_the_chat(chatml: Any, task: ls.Task) -> None:
    names = [NEURON, "L1N6", "L2N7"]
    explained = explanation.explain(
        chatml, task, names, n_permutations=0, metric="logit_diff", chat=True
    )
    assert "assistant" in "".join(explained[NEURON].top[0].tokens)
    assert diagnostics.redundancy(chatml, task, names, chat=True).provenance["chat"] is True
    dose = interventions.dose_response(chatml, task, names, doses=(-1.0, 1.0), chat=True)
    assert dose.provenance["chat"] is True
    without = interventions.dose_response(
        chatml, task, names, doses=(-1.0, 1.0), over=task, neutral=SENTENCES[:2], chat=False
    )
    assert without.provenance["chat"] is False
    screened = interventions.prescreen(chatml, task, names, metric="logit_diff", chat=True)
    ranked = ls.rank(chatml, task, "logit_diff", method="taylor", chat=True)
    place = int(((ranked.layer == 1) & (ranked.neuron == 5)).nonzero())
    assert float(screened.taylor[0]) == pytest.approx(float(ranked.score[place]), rel=1e-3)


REFUSALS = [
    ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
    ("{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}", "does not take turns of user"),
]


@pytest.mark.parametrize(("text", "said"), REFUSALS)
def test_a_template_that_refuses_says_why(chatml: Any, text: str, said: str) -> None:
    with template(chatml, text), pytest.raises(LensSkillsError, match=said):
        as_adapter(chatml).in_chat(True)


def test_prompts_in_the_template_already_are_refused(model: Any) -> None:
    whole = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "The keys"}], tokenize=False, add_generation_prompt=True
    )
    for text in (whole, whole.removeprefix("<s>")):
        with pytest.raises(LensSkillsError, match="in it already"):
            as_adapter(model).in_chat(True).encode(text)


def test_the_date_of_a_template_stands_still(chatml: Any) -> None:
    dated = "Today {{ strftime_now('%d %b %Y') }}. " + TEMPLATES["chatml"]
    with template(chatml, dated):
        assert as_adapter(chatml).in_chat(True).rendered("x").startswith("Today 26 Jul 2024.")


def test_an_answer_of_spaces_is_none(chatml: Any) -> None:
    adapter = as_adapter(chatml).in_chat(True)
    with pytest.raises(LensSkillsError, match="no tokens of its own in a chat"):
        encode_examples(adapter, [Example("a", "The keys", " ")], answers=True)


def test_slow_tokenizers_find_no_span(chatml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    with pytest.raises(LensSkillsError, match="does not say which text a token stands for"):
        as_adapter(chatml).in_chat(True).places_in_turn("The keys", "keys")
