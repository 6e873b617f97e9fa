"""`Openable`: what `load_model` can open on this machine, and how."""

from dataclasses import dataclass
from importlib.metadata import version

from lens_skills.models import cache
from lens_skills.models.bundled import BUNDLED, DEFAULT


@dataclass(frozen=True)
class Openable:
    """One row of ``lens-skills models``.

    Attributes:
        what: ``bundled``, ``hub cache``, ``kind`` or ``implementation``.
        name: The model, the kind of thing, or the implementation.
        how: The call that opens it.
        state: What was found here.
    """

    what: str
    name: str
    how: str
    state: str


def describe_openable() -> tuple[Openable, ...]:
    """Everything that can be opened here, found without network and without loading anything."""
    return (*_bundled(), *_hub_cache(), *_kinds(), *_implementations())


def _bundled() -> tuple[Openable, ...]:
    rows = []
    for entry in BUNDLED.values():
        found = entry.find()
        how = "load_model()" if entry.name == DEFAULT else f"load_model({entry.name!r})"
        if found is None:
            state = f"not installed: {entry.install}"
        elif found.is_dir():
            state = "installed"
        elif (cache.entry_of(found) / cache.MANIFEST).is_file():
            state = "installed, converted"
        else:
            state = "installed; the first load converts it (about half a minute)"
        rows.append(Openable("bundled", entry.name, how, state))
    return tuple(rows)


def _hub_cache() -> tuple[Openable, ...]:
    try:
        from huggingface_hub import scan_cache_dir

        repositories = scan_cache_dir().repos
    except Exception:  # no cache, or one that is not ours to repair: there is nothing to list
        return ()
    return tuple(
        Openable("hub cache", repository.repo_id, f"load_model({repository.repo_id!r})",
                 f"downloaded, {repository.size_on_disk / 1e6:.0f} MB")
        for repository in sorted(repositories, key=lambda found: found.repo_id)
        if repository.repo_type == "model"
    )  # fmt: skip


def _kinds() -> tuple[Openable, ...]:
    local = "no network"
    return (
        Openable("kind", "folder", "load_model('path/to/folder')", f"by save_pretrained; {local}"),
        Openable("kind", "GGUF file", "load_model('model.gguf')", f"converted once; {local}"),
        Openable("kind", "Hugging Face model", "load_model(model, tokenizer=tokenizer)",
                 f"copied, yours stays as it is; {local}"),
        Openable("kind", "hub name", "load_model('gpt2')", "needs network unless downloaded"),
        Openable("kind", "HookedTransformer, TransformerBridge", "pass it to any verb",
                 "used as it is"),
    )  # fmt: skip


def _implementations() -> tuple[Openable, ...]:
    found = version("transformer-lens")
    hooked = int(found.split(".")[0]) < 4
    how = "load_model(..., implementation={!r})"
    absent = f"not in TransformerLens {found}: pip install 'transformer-lens<4'"
    here = f"TransformerLens {found}"
    return (
        Openable("implementation", "hooked", how.format("hooked"), here if hooked else absent),
        Openable("implementation", "bridge", how.format("bridge"), here),
    )
