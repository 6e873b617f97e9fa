"""What is opened is data: no pickle, no code of a file or of a hub, no archive is unpacked."""

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_skills.contents import unpacked
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import load_model

PACKAGE = Path(__file__).resolve().parents[1] / "lens_skills"
CALLED = {"eval", "exec", "compile", "__import__"}
IMPORTED = {
    "pickle", "_pickle", "dill", "joblib", "marshal", "shelve", "code", "runpy", "pty",
    "tarfile", "zipfile",
}  # fmt: skip
ASKED = {  # by the end of its name: what a call may not do, or must say
    ".load": lambda call, owner: owner == "torch" and given(call, "weights_only") is not True,
    ".read_pickle": lambda *_: True,
    ".to_pickle": lambda *_: True,
    ".unpack_archive": lambda *_: True,
    ".system": lambda _, owner: owner == "os",
    ".popen": lambda _, owner: owner == "os",
    ".unsafe_load": lambda *_: True,
    ".save": lambda _, owner: owner == "torch",
    ".from_pretrained": lambda call, owner: (
        owner in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
        and given(call, "trust_remote_code") is not False
    ),
}  # fmt: skip


def given(call: ast.Call, name: str) -> Any:
    """What a keyword is given in a call: its constant, or None."""
    found = [word.value for word in call.keywords if word.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def executed(text: str) -> Iterator[str]:
    """Everything in a source that may run what it reads."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (f"imports {name}" for name in names if name.split(".")[0] in IMPORTED)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in CALLED:
            yield f"calls {called}"
        for end, forbidden in ASKED.items():
            if called.endswith(end) and forbidden(node, called.removesuffix(end)):
                yield f"calls {called} so"
        words = ("shell", "allow_pickle", "trust_remote_code")
        yield from (f"{word}=True" for word in words if given(node, word) is True)
        if called in ("yaml.load", "yaml.full_load"):
            yield f"calls {called}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_file_of_the_package_runs_what_it_reads(path: Path) -> None:
    assert [*executed(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "exec(text)", "import pickle", "from joblib import load", "import tarfile",
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(p, allow_pickle=True)",
        "subprocess.run(line, shell=True)", "yaml.load(text)", "os.system(line)",
        "AutoConfig.from_pretrained(name)", "f(name, trust_remote_code=True)",
        "pd.read_pickle(path)", "shutil.unpack_archive(path)",
    ],
)  # fmt: skip
def test_the_search_finds(line: str) -> None:
    assert [*executed(line)]


def test_the_search_lets_pass_what_is_data() -> None:
    fine = (
        "model.eval()", "re.compile(x)", "torch.load(p, weights_only=True)", "np.load(p)",
        "AutoConfig.from_pretrained(x, trust_remote_code=False)", "json.load(file)",
    )  # fmt: skip
    assert [found for line in fine for found in executed(line)] == []


class Touch:
    """Pickled, it makes a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def weights_that_run_code(folder: Path, trap: Path) -> None:
    (folder / "model.safetensors").unlink()
    state = {"model.norm.weight": torch.zeros(32), "trap": Touch(trap)}
    torch.save(state, folder / "pytorch_model.bin")


def plain_pickle(folder: Path, trap: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"trap": Touch(trap)}))


def own_modelling_code(folder: Path, trap: Path) -> None:
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    kinds = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": kinds})
    )


def own_tokenizer_code(folder: Path, trap: Path) -> None:
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()\n")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "poison", [weights_that_run_code, plain_pickle, own_modelling_code, own_tokenizer_code]
)
def test_a_model_folder_that_brings_code_is_refused_and_not_run(
    poison: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("builtins.input", lambda *said: asked.append(said) or "y")
    folder, trap = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_folder, folder)
    poison(folder, trap)
    with pytest.raises(LensSkillsError, match=r"did not load|no tokenizer loads") as refused:
        load_model(folder)
    assert not trap.exists()
    assert asked == []  # nobody is led to say yes
    assert str(folder) in str(refused.value)


def test_weights_in_a_bin_file_are_read_as_numbers_alone(
    tiny_folder: Path, tiny_hf: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_hf[0].state_dict(), folder / "pytorch_model.bin")
    tokens = torch.tensor([[1, 5, 9]])
    ours = load_model(folder)(tokens)
    torch.testing.assert_close(ours, tiny_hf[0](tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "os:system", "pathlib:Path", "lens_skills_other:x", "lens_skills.results:shutil.rmtree",
        "lens_skills.contents:import_module", "lens_skills.contents:Example",
    ],
)  # fmt: skip
def test_a_kept_part_names_dataclasses_where_they_are_defined_alone(name: str) -> None:
    plain = {"$data": name, "fields": {"id": "1", "prompt": "x"}}
    with pytest.raises((ValueError, AttributeError), match=r"is none of|is no dataclass|is not of"):
        unpacked(plain, lambda key: torch.zeros(1))
    plain |= {"$data": "lens_skills.data:Example"}
    assert unpacked(plain, lambda key: torch.zeros(1)) == Example("1", "x")
