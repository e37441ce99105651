"""The installed package and the wheel hold the whole library and nothing else."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = {"pipelines", "schedulers", "training"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that no build folder is left in the tree
    tracked = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "diffsal_diffusers", *sorted(MAPPED)]
    for name in tracked:
        for file in sorted([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = source / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_module_under_one_name(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"diffsal_diffusers"}
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "diffsal_diffusers").rglob("*.py")}
    for folder in MAPPED:
        expected |= {f"diffsal_diffusers/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    configs = {f"diffsal_diffusers/{p.relative_to(ROOT)}" for p in (ROOT / "training").rglob("*.yaml")}
    models = {str(p.relative_to(ROOT)) for p in (ROOT / "diffsal_diffusers/pretrained_models").rglob("*.*")}
    assert configs and models and {name for name in names if not name.endswith(".py")} == configs | models


def test_wheel_works_where_the_repository_is_not(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import diffsal_diffusers, diffsal_diffusers.pipelines, diffsal_diffusers.schedulers, "
        "diffsal_diffusers.training; print(diffsal_diffusers.__file__)"
    )
    # -S would lose the dependencies: the wheel's copy is put first instead, and asked where it lies.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(site)


def test_mapped_folders_are_no_packages_of_their_own():
    """Imported by their folder's name they would be second copies of the same classes."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
for folder in {sorted(MAPPED)}:
    try:
        __import__(folder)
    except ImportError:
        print(folder)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(MAPPED)


def test_version_is_stated_once():
    import diffsal_diffusers

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == diffsal_diffusers.__version__
