"""The tables of the simulated plan in ``docs/howto/many_machines.md``."""

from collections.abc import Mapping
from typing import Any

MODELS = {"8b": "8B", "70b": "70B"}


def validation(numbers: Mapping[str, Any]) -> list[list[str]]:
    """What the simulation said from a small pass, and what the large one took."""
    head = ["a pass of four times the examples, two workers", "predicted", "measured", "ratio"]
    rows = [
        [
            words,
            f"{numbers[f'{key}_predicted_seconds']:.1f} s",
            f"{numbers[f'{key}_measured_seconds']:.1f} s",
            f"{numbers[f'{key}_ratio']:.2f} ({numbers[f'{key}_ratio_low']:.2f} to "
            f"{numbers[f'{key}_ratio_high']:.2f})",
        ]
        for key, words in (("whole", "nothing happens"), ("death", "one worker is killed"))
        if f"{key}_ratio" in numbers
    ]
    if "state_told_bytes" in numbers:
        told, sent = numbers["state_told_bytes"], numbers["figure_part_bytes"]
        rows.append(
            [
                "bytes of a part",
                f"{told / 1e6:.2f} MB",
                f"{sent / 1e6:.2f} MB",
                f"{told / sent:.2f}",
            ]
        )
    return [head, *rows]


def figures(numbers: Mapping[str, Any]) -> list[list[str]]:
    """What the plan rests on, and where each figure is from."""
    if "assumed_tokens" not in numbers:
        return [["figure", "value", "from"]]
    a = {key.removeprefix("assumed_"): v for key, v in numbers.items() if key.startswith("assumed")}
    m = {key.removeprefix("figure_"): v for key, v in numbers.items() if key.startswith("figure_")}
    rows = [
        ["examples", f"{a['tokens'] / a['tokens_per_example']:,.0f} of "
         f"{a['tokens_per_example']:.0f} tokens", "the plan"],
        ["metrics, permutations, controls",
         f"{a['metrics']:.0f}, {a['permutations']:.0f}, {a['controls']:.0f}", "the plan"],
        ["arithmetic of a forward pass", "2 operations a parameter and token", "counted"],
        ["sums of each neuron", f"{numbers['columns']:.0f} columns, {numbers['marks']:.0f} of "
         "squares, float64", "measured"],
        ["read here before, each example", f"{1e6 * m['first_example']:.0f} µs", "measured"],
        ["prepared by a worker, each example", f"{1e6 * m['begin_example']:.0f} µs", "measured"],
        ["sent to each node, each example", f"{m['job_bytes_example'] / 1e3:.2f} kB", "measured"],
        ["a shard beside its work", f"{1e3 * m['more']:.0f} ms", "measured"],
        ["adding a part", f"{m['part_bytes'] / m['merge'] / 1e9:.1f} GB/s", "measured"],
        ["GPU", f"{a['gpu_bf16_flops'] / 1e15:.2f} PFLOP/s in bfloat16, "
         f"{a['gpu_float64_flops'] / 1e12:.0f} TFLOP/s in float64, {a['gpu_memory_gb']:.0f} GB",
         "**assumed**: a B200's data sheet"],
        ["of that reached", f"{100 * a['utilisation']:.0f} %", "**assumed**"],
        ["network; reading weights", f"{a['network_bytes_per_second'] / 1e9:.1f} GB/s; "
         f"{a['reading_bytes_per_second'] / 1e9:.0f} GB/s each worker", "**assumed**"],
        ["deaths", f"{1000 * a['deaths_per_gpu_day']:.2f} a day on 1,000 GPUs",
         "**assumed**: as in the training of Llama 3 (arXiv 2407.21783, §3.3.4)"],
        ["noticed after", f"{a['noticed_seconds']:.0f} s", "**assumed**"],
    ]  # fmt: skip
    return [["figure", "value", "from"], *rows]


def plan(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Hours, shards and bytes of 10⁹ tokens on some nodes."""
    head = [
        "model",
        "nodes of 8 GPUs",
        "shards a worker",
        "hours (with deaths, 95 % below)",
        "of these one process alone",
        "a shard",
        "a dead node costs",
        "workers busy",
        "over the network",
    ]
    rows = []
    for model, words in MODELS.items():
        for key in numbers:
            parts = key.split("_")
            if len(parts) != 4 or parts[0] != model or parts[3] != "hours":
                continue
            own = {
                k.removeprefix(key[:-5]): v for k, v in numbers.items() if k.startswith(key[:-5])
            }
            rows.append(
                [
                    words,
                    parts[1],
                    parts[2],
                    f"{own['hours']:.1f} ({own['hours_high']:.1f})",
                    f"{own['serial_hours']:.1f} h",
                    f"{own['shard_minutes']:.1f} min",
                    f"{own['lost_a_death']:.1%} of the work".replace("%", " %"),
                    f"{own['efficiency']:.0%}".replace("%", " %"),
                    f"{own['network_gb'] / 1e3:.2f} TB",
                ]
            )
    return [head, *rows]


def memory(numbers: Mapping[str, Any]) -> list[list[str]]:
    """What a worker and the asking process must hold."""
    head = [
        "model",
        "weights, bfloat16, each worker",
        "sums, each worker and part",
        "examples sent",
    ]
    rows = []
    for model, words in MODELS.items():
        key = f"{model}_1_4"
        if f"{key}_hours" in numbers:
            rows.append(
                [words, *(f"{numbers[f'{key}_{what}_gb']:.1f} GB" for what in
                          ("weights", "state", "job"))]
            )  # fmt: skip
    return [head, *rows]
