from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from experts.outside.errors import UserError
from experts.outside.files import atomic_file, atomic_folder, cache_folder, check_writable, expand, write_json


def write_half(target: AbstractContextManager[Path], name: str = "") -> None:
    with target as temporary:
        (temporary / name).write_text("half")
        raise OSError("the disk is full")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(OSError, match="full"):
        write_half(atomic_file(path))
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(OSError, match="full"):
        write_half(atomic_folder(folder), "a")
    assert (folder / "a").read_text() == "old"
    with atomic_folder(folder) as temporary:
        (temporary / "b").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [folder]


def test_unwritable_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        check_writable(tmp_path / "file" / "below")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFADAPT_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("SELFADAPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/selfadapt")


def test_a_home_folder_that_is_not_known_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without an entry in the list of users, and without HOME; or for one who is not on this machine."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SELFADAPT_CACHE")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 5)
    with pytest.raises(UserError, match="name one in SELFADAPT_CACHE"):
        cache_folder()
    for path in ("~/model", "~no-such-user/model"):
        with pytest.raises(UserError, match=f"{path} cannot be found, as the home folder is not known"):
            expand(path)
    assert expand("a/~/b") == Path("a/~/b")
