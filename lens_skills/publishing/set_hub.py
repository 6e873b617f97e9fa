"""A `NeuronSet` on the Hugging Face hub: up, and down again."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.publishing import set_format

HUB = "hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILES = (f"{set_format.NAME}.json", f"{set_format.NAME}.safetensors")


def push(
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    repository: str,
    *,
    private: bool,
    token: str | None,
) -> str:
    """Uploads; see `NeuronSet.push`."""
    name = _checked(repository, repository)
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="lens-skills-") as work:
        folder = set_format.write(Path(work) / "set", document, tensors)
        page = folder / "README.md"
        page.write_text(readme(document, name), encoding="utf-8")
        api = HfApi(token=token, library_name="lens-skills")
        with _said(f"{name} cannot be written on the hub"):
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=[*_FILES, page.name],
                commit_message=f"NeuronSet {document['name']}",
            )
    return f"{HUB}{name}"


def pulled(place: str) -> Path:
    """A folder with the files of ``hub:user/name`` or ``hub:user/name@revision``.

    Raises:
        LensSkillsError: No such name; the hub does not answer, or has no set there.
    """
    name, _, revision = place.removeprefix(HUB).partition("@")
    _checked(name, place)
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise LensSkillsError(f"{place!r}: {revision!r} is no revision.")
    from huggingface_hub import hf_hub_download

    with _said(f"no NeuronSet can be had from {place!r}"):
        paths = [
            Path(hf_hub_download(name, file, revision=revision or None, library_name="lens-skills"))
            for file in _FILES
        ]
    return paths[0].parent


def _checked(name: str, asked: Any) -> str:
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or ".." in name:
        raise LensSkillsError(
            f"{asked!r:.120} is no repository of the hub. Say 'user/name' to push, and "
            "'hub:user/name' to load."
        )
    return name


@contextmanager
def _said(failure: str) -> Iterator[None]:
    """What the hub's library raises as one sentence, without the token it was sent."""
    try:
        yield
    except LensSkillsError:
        raise
    except Exception as error:  # of many kinds, by version
        raise LensSkillsError(f"{failure}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if type(error) is RuntimeError and error.__cause__ is not None:  # "Error while uploading"
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    by_status: Mapping[Any, str] = {
        401: "it wants a token, or knows this one not. Log in: `hf auth login`, or set HF_TOKEN",
        403: "the token has no right to it. Take one that may write there",
        404: "there is no such repository, revision or file, or it is private",
    }
    by_kind: Mapping[str, str] = {
        "LocalTokenNotFoundError": by_status[401],
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and it is not in the cache. Unset it",
        "LocalEntryNotFoundError": "it is not in the cache, and the hub cannot be reached "
        "(offline, or HF_HUB_OFFLINE is set)",
        "EntryNotFoundError": "it holds no set: " + " and ".join(_FILES),
        "RemoteEntryNotFoundError": "it holds no set: " + " and ".join(_FILES),
        "RevisionNotFoundError": "there is no such revision",
    }
    said = by_kind.get(kind) or by_status.get(status)
    if said is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{kind}: {lines[0][:200] if lines else 'no reason given'}"
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_…", said.rstrip(".")) + "."


def readme(document: Mapping[str, Any], repository: str) -> str:
    """The page of the repository: what it is, how it is opened, its first components."""
    model, task = document["model"], document["task"]
    front = {
        "license": _licence(document["licence"]),
        **(
            {"license_name": document["licence"]}
            if _licence(document["licence"]) == "other"
            else {}
        ),
        "library_name": "lens-skills",
        "tags": ["interpretability", "neurons", "lens-skills"],
        **({"base_model": model["name"]} if _REPOSITORY.fullmatch(model["name"]) else {}),
    }
    # JSON is YAML, with every text quoted.
    yaml = "\n".join(
        f"{key}: {json.dumps(part, ensure_ascii=False)}" for key, part in front.items()
    )
    cell = _cell
    lines = ["---", yaml, "---", "", f"# {cell(document['name'])}", ""]
    lines += [cell(document["description"]), ""] if document["description"] else []
    lines += [
        f"{len(document['components'])} components of {cell(model['name'])}"
        + (f", found on the task {cell(task['name'])}." if task else "."),
        "",
        "```python",
        "import lens_skills as ls",
        "",
        f"found = ls.NeuronSet.load({f'{HUB}{repository}'!r})",
        "found.check(model)   # whether your model holds the same weights",
        "found.audit(model)   # on trial",
        "```",
        "",
        "| component | position | r [95 %] | effect [95 %] | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in document["components"][:50]:
        claim, ruling = next(iter(row["associations"]), {}), row["verdict"] or {}
        cells = [
            row["name"],
            row["position"],
            _ends(claim.get("r"), claim.get("low"), claim.get("high"), claim.get("metric")),
            _ends(ruling.get("effect"), ruling.get("low"), ruling.get("high"), ruling.get("unit")),
            ruling.get("label", ""),
        ]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    signs = document["sign_convention"]
    lines += ["", f"r {cell(signs['r'])}; effect: {cell(signs['effect'])}."]
    lines += ["", "## Citation", "", cell(document["citation"])] if document["citation"] else []
    return "\n".join(lines) + "\n"


def _cell(part: Any) -> str:
    """A text that breaks no table and is no markup."""
    return re.sub(r"[|<>`\n\r]", " ", str(part))


def _licence(text: str) -> str:
    """As the hub names licences: small letters."""
    known = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text.lower())
    return text.lower() if known else "other"


def _ends(value: Any, low: Any, high: Any, of: Any) -> str:
    if value is None:
        return ""
    ends = "" if low is None or high is None else f" [{low:+.2g}, {high:+.2g}]"
    return f"{value:+.2g}{ends} {of}"
