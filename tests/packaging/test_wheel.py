"""What users install: the wheel, built from the sdist, in an environment that has never seen the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import medtrain

BIN = "Scripts" if os.name == "nt" else "bin"


def _run(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MEDTRAIN"))}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, repository, cwd=out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; the dependencies are borrowed from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("venv")
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
    python = folder / BIN / "python"
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder).strip())
    borrowed = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    # a .pth file named by another .pth file is not read, so the editable medtrain stays out of sight
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", built[1], cwd=folder)
    return folder


def test_the_wheel_holds_the_package_the_configuration_and_nothing_else(
    built: tuple[Path, Path], repository: Path
) -> None:
    names = set(zipfile.ZipFile(built[1]).namelist())
    info = f"medtrain-{medtrain.__version__}.dist-info"

    expected = {f"medtrain/{path.relative_to(repository)}" for path in (repository / "conf").rglob("*.yaml")}
    expected |= {str(path.relative_to(repository)) for path in (repository / "medtrain").rglob("*.py")}
    expected |= {"medtrain/py.typed"}
    ignored = {name for name in expected if name.startswith("medtrain/conf/local/")}
    assert any(name.startswith("medtrain/conf/") for name in expected)
    assert {name for name in names if not name.startswith(info)} == expected - ignored
    assert {name.removeprefix(f"{info}/") for name in names if name.startswith(info)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_sdist_holds_no_outputs_and_no_data(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names}
    assert tops <= {
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "README.md",
        "conf",
        "medtrain",
        "pyproject.toml",
        "scripts",
        "tests",
    }
    assert not [name for name in names if name.endswith((".nii.gz", ".pt", ".safetensors", ".pyc"))]


def test_the_installed_command_composes_its_own_configuration(environment: Path, tmp_path: Path) -> None:
    command = environment / BIN / "medtrain"
    where = _run(environment / BIN / "python", "-c", "import medtrain; print(medtrain.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)

    # without its data, so nothing is derived and nothing generated
    shown = _run(command, "show", "model=unet", "data=msd_liver", "optimizer.lr=0.0123", cwd=tmp_path)
    assert "0.0123" in shown
    assert "convs_per_stage" in shown

    assert "unet" in _run(command, "list", "model", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
