"""What is built to be installed: every file of the package, nothing else, and its metadata."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

import lens_skills
from lens_skills.ranking import METHODS

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {
    "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md",
    "constraints.txt", "pyproject.toml",
}  # fmt: skip


def tracked(folder: str) -> set[str]:
    """The files of a folder that git knows or would take."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    try:
        listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a clone: what belongs to the package is not known")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def build(source: Path, out: Path, kind: str) -> Path:
    """A wheel or a source distribution of a folder, without a network."""
    asked = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out)]
    ran = subprocess.run([*asked, str(source)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of this tree, and the wheel that is built from what is in it."""
    pytest.importorskip("build", reason="`build` is part of the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    # Built from a copy: setuptools leaves folders in the tree it builds.
    copy = folder / "clone"
    for name in tracked("."):
        if name.startswith(("lens_skills/", "tests/test_")) or name in BESIDE:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    source = build(copy, folder / "source", "sdist")
    with tarfile.open(source) as archive:
        # Python before 3.11.4 has no filters.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder / "unpacked", **safely)
    (unpacked,) = (folder / "unpacked").iterdir()
    return source, build(unpacked, folder / "wheel", "wheel")


def clean() -> dict[str, str]:
    """The environment without the way to this tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path]) -> Path:
    """The Python of an environment with the wheel in it, and what it needs from this one's."""
    import torch

    folder = built[1].parents[1] / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(built[1])], check=True, capture_output=True, env=clean())
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout
    # A path file of a path file is not read, so that no editable installation stands in between.
    (Path(own.strip()) / "beside.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


@pytest.mark.slow
def test_the_installed_wheel_passes_the_smoke_run(installed: Path, tmp_path: Path) -> None:
    asked = [str(installed), "-I", str(ROOT / ".ci" / "smoke.py"), str(tmp_path)]
    ran = subprocess.run(
        asked, cwd=tmp_path, capture_output=True, text=True, check=False, env=clean()
    )
    assert ran.returncode == 0, ran.stderr
    assert f"lens-skills {lens_skills.__version__} in {installed.parents[1]}" in ran.stdout


@pytest.mark.slow
def test_a_type_checker_reads_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="`pyright` is part of the extra `dev`")
    wrong = "\nchosen.no_such_name\nls.scroe\n"
    text = (ROOT / ".ci" / "typed_user.py").read_text(encoding="utf-8")
    (tmp_path / "right.py").write_text(text, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(text + wrong, encoding="utf-8")
    asked = [sys.executable, "-m", "pyright", "--pythonpath", str(installed), "."]
    ran = subprocess.run(
        asked, cwd=tmp_path, capture_output=True, text=True, check=False, env=clean()
    )
    found = [line for line in ran.stdout.splitlines() if " - error" in line]
    assert len(found) == 2, ran.stdout  # those, which shows that types are known, and no others
    assert "no_such_name" in found[0]
    assert "scroe" in found[1]


def about(built: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return message_from_string(wheel.read(name).decode())


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == tracked("lens_skills")
        information = {Path(name).name for name in wheel.namelist()} - {Path(n).name for n in names}
    assert information == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt",
                           "top_level.txt"}  # fmt: skip


@pytest.mark.slow
def test_the_source_distribution_builds_and_holds_what_a_reader_needs(
    built: tuple[Path, Path],
) -> None:
    with tarfile.open(built[0]) as archive:
        names = {
            name.partition("/")[2]
            for name in archive.getnames()
            if archive.getmember(name).isfile()
        }
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == tracked("lens_skills") | BESIDE


@pytest.mark.slow
def test_the_metadata_says_what_pyproject_says(built: tuple[Path, Path]) -> None:
    metadata = about(built)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Name"] == project["name"]
    assert metadata["Version"] == lens_skills.__version__
    assert metadata["Summary"] == project["description"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# lens_skills\n")
    needed = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert len(needed) == len(project["dependencies"])
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
        assert "lens-skills = lens_skills.cli:main" in wheel.read(name).decode()


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]


def test_the_citation_is_valid_and_of_this_version() -> None:
    """Keys and kinds as the schema of cff 1.2.0 has them."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == lens_skills.__version__
    assert {"message", "title", "authors"} <= set(cited)
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["title"] in (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    assert paper["url"].endswith(paper["identifiers"][0]["value"].removeprefix("arXiv:"))


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    versions = [line for line in text.splitlines() if line.startswith("## [")]
    assert versions[0].startswith(f"## [{lens_skills.__version__}] - ")
    pages = [ROOT / "docs" / name for name in ("limits.md", "families.md")]
    assert all(f"docs/{page.name}" in text and page.exists() for page in pages)
    assert {"### Added", "### Known limits"} <= set(text.splitlines())


def test_what_the_changelog_names_is_public() -> None:
    import re

    words = set(re.findall(r"`([a-z_]+)`", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    known = {*lens_skills.__all__, *dir(lens_skills.tasks), *vars(lens_skills.tasks)}
    known |= set(METHODS)  # of rank
    assert words - known <= {"demo", "report"}  # commands of the shell
