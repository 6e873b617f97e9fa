"""``--model`` of the benchmarks that run on any model: hub name, folder, or file."""

import argparse
import re
from typing import Any

import lens_skills as ls


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option ``--model``; None is the bundled SmolLM2-135M."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a hub name, folder or .gguf file; default: the bundled SmolLM2-135M",
    )


def opened(asked: str | None) -> Any:
    """The model that was asked for."""
    return ls.load_model(asked) if asked else ls.load_model()


def slug(asked: str | None) -> str:
    """What files of a model are called: no path, no quantisation; "smollm2" for the bundled one.

    >>> slug("Qwen/Qwen2.5-Coder-0.5B-Instruct"), slug("x/qwen2.5-coder-0.5b-instruct-q4.gguf")
    ('qwen2.5-coder-0.5b', 'qwen2.5-coder-0.5b')
    >>> slug(None), slug("arithmetic-small")
    ('smollm2', 'arithmetic_small')
    """
    if asked is None:
        return "smollm2"
    name = asked.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    name = re.sub(r"-(instruct|q\d\w*)(?=-|$)", "", name)
    return name.replace("-small", "_small")
