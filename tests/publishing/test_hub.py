"""A set goes up to the hub and comes down the same, by the real client against a local stand-in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.publishing import NeuronSet
from lens_skills.tasks import agreement
from tests.publishing.hub_stand_in import TOKEN, Hub

# httpx's own, of how huggingface_hub hands it the parts of a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    served = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        served.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has LFS alone
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def made(tiny_hooked: Any) -> NeuronSet:
    task = agreement()[:40]
    return NeuronSet.of(
        ["L1N3", "L2N7"], tiny_hooked, task, licence="CC-BY-4.0", citation="A <b>|\n 2026"
    )


def test_up_and_down_again(made: NeuronSet, hub: Hub, tiny_hooked: Any) -> None:
    address = made.push("someone/verbs")
    assert address == "hub:someone/verbs"
    held = hub.repositories["someone/verbs"]
    assert set(held) == {"neurons.json", "neurons.safetensors", "README.md"}
    assert hub.private["someone/verbs"] is False
    page = held["README.md"].decode()
    assert page.startswith('---\nlicense: "cc-by-4.0"\n')
    assert "A  b    2026" in page  # no markup of the set's texts
    again = NeuronSet.load(address)
    assert again.document == made.document
    assert again.check(tiny_hooked).exact
    assert any("lfs-object" in asked for asked in hub.asked)
    made.push("someone/verbs", private=True)  # again into what is there


def test_the_token_is_in_no_file_and_no_message(
    made: NeuronSet, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.push("someone/verbs")
    assert not any(TOKEN.encode() in part for part in hub.repositories["someone/verbs"].values())
    with pytest.raises(LensSkillsError, match="Log in: `hf auth login`") as refused:
        made.push("someone/else", token="hf_wrongTokenOfSomeone12345")
    assert "hf_wrong" not in str(refused.value)
    assert "someone/else" not in hub.repositories


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("hub:someone/none", "there is no such repository"),
        ("hub:someone/empty", "it holds no set: neurons.json and neurons.safetensors"),
    ],
)
def test_what_is_not_there_is_said(asked: str, said: str, hub: Hub) -> None:
    hub.repositories["someone/empty"] = {}
    with pytest.raises(LensSkillsError, match=said):
        NeuronSet.load(asked)


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a", "a/b/c", "/etc/x", "a/b@../../c", "a/b@", ".a/b", "a\\b/c", ""]
)
def test_a_name_that_is_a_path_is_refused_unasked(name: str, hub: Hub, made: NeuronSet) -> None:
    if not name.endswith("@"):
        with pytest.raises(LensSkillsError, match=r"is no re(pository|vision)"):
            NeuronSet.load(f"hub:{name}")
    with pytest.raises(LensSkillsError, match="is no repository"):
        made.push(name)
    assert hub.asked == []


def test_a_file_that_was_changed_on_the_hub_is_refused(made: NeuronSet, hub: Hub) -> None:
    made.push("someone/verbs")
    held = hub.repositories["someone/verbs"]
    held["neurons.json"] = held["neurons.json"].replace(b"CC-BY-4.0", b"CC-BY-9.0")
    with pytest.raises(LensSkillsError, match="damaged"):
        NeuronSet.load("hub:someone/verbs")


def test_without_network_it_says_so(made: NeuronSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LensSkillsError, match="HF_HUB_OFFLINE is set"):
        NeuronSet.load("hub:someone/verbs")
    with pytest.raises(LensSkillsError, match="HF_HUB_OFFLINE is set"):
        made.push("someone/verbs")
