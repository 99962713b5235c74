"""Where a run may go, what is left of one that was stopped, and what it goes on from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experts.outside.errors import UserError
from experts.training.log import Log
from experts.training.run import (
    Run,
    at_work_in,
    check_folders,
    last_checkpoint,
    prepare_folders,
    remove_folder,
    unfinished_folder,
)
from experts.training.validation import kept_path

RECIPE = {"training": "tiny"}


def check(output: Path | str, *, resume: bool = False, replace: bool = False) -> None:
    check_folders(Path(output), RECIPE, resume=resume, replace=replace)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("output", [".", "", "/", "..", "../here", "../../"])
def test_the_current_folder_and_those_around_it_are_no_output(output: str, here: Path) -> None:
    for replace in (False, True):
        with pytest.raises(UserError, match="is the current folder, or contains it"):
            check(output, replace=replace)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("output", ["file", "file/expert", "file/deep/expert", "/proc/no/such"])
def test_nothing_goes_where_no_folder_can_be(output: str, here: Path) -> None:
    (here / "file").write_text("mine")
    with pytest.raises(UserError, match=r"is a file|cannot write to"):
        check(output)
    assert (here / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(here: Path) -> None:
    (here / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check("closed/expert")


def test_what_is_there_stays(here: Path) -> None:
    (here / "expert").mkdir()
    check("expert")  # empty
    (here / "expert" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        check("expert")
    check("expert", replace=True)
    assert [path.name for path in here.rglob("*")] == ["expert", "file"]


def test_looking_leaves_nothing_behind(here: Path) -> None:
    check("runs/deep/expert")
    assert list(here.iterdir()) == []


def test_a_run_goes_on_only_where_one_was_begun_by_the_same_recipe(here: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        check("expert", resume=True)
    unfinished = prepare_folders(Path("expert"), RECIPE, resume=False)
    assert unfinished == unfinished_folder(Path("expert"))
    check("expert", resume=True)
    with pytest.raises(UserError, match=r"continue it with --resume .* start over \(rm -r expert\.unfinished\)"):
        check("expert")
    with pytest.raises(UserError, match="choose another folder, as this one is of another recipe; or remove it"):
        check_folders(Path("expert"), {"training": "other"}, resume=False, replace=False)
    with pytest.raises(UserError, match="another recipe"):
        check_folders(Path("expert"), {"training": "other"}, resume=True, replace=False)
    # Killed after the expert was complete, and before its folder was removed.
    (here / "expert").mkdir()
    (here / "expert" / "README.md").touch()
    check("expert", resume=True)


def write_checkpoint(folder: Path, state: str | None = "{}") -> None:
    folder.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": torch.ones(4)}, folder / name)
    save_file({"z": torch.ones(4)}, folder / "adapter_model.safetensors")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_only_a_whole_checkpoint_is_gone_on_from(missing: str, here: Path) -> None:
    for step, state in {2: "{}", 4: "{}", 10: '{"global_step": 1', 12: None, 14: "[]"}.items():
        write_checkpoint(here / f"checkpoint-{step}", state)
    assert last_checkpoint(here) == str(here / "checkpoint-4")
    (here / "checkpoint-4" / missing).unlink()
    assert last_checkpoint(here) == str(here / "checkpoint-2")


@pytest.mark.parametrize("torn", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_checkpoint_with_a_torn_file_is_not_whole(torn: str, left: float, here: Path) -> None:
    for step in (2, 4):
        write_checkpoint(here / f"checkpoint-{step}")
    assert last_checkpoint(here) == str(here / "checkpoint-4")
    file = here / "checkpoint-4" / torn
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    assert last_checkpoint(here) == str(here / "checkpoint-2")


@pytest.mark.parametrize("content", [None, b"", b"torn"])
def test_a_best_step_that_is_gone_is_one_line(content: bytes | None, here: Path) -> None:
    run = Run(here / "expert", RECIPE)
    run.folder.mkdir()
    if content is not None:
        kept_path(run.folder, 3).write_bytes(content)
    with pytest.raises(UserError, match="the parameters at the best step, is missing or damaged"):
        run._kept(3)


def test_a_damaged_note_of_the_recipe_is_one_line(here: Path) -> None:
    unfinished = prepare_folders(Path("expert"), RECIPE, resume=False)
    note = unfinished / "recipe.json"
    note.write_bytes(b"\xef\xbb\xbf" + note.read_bytes())
    check("expert", resume=True)
    note.write_text("{")
    with pytest.raises(UserError, match=r"recipe\.json: not JSON"):
        check("expert", resume=True)


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(here: Path) -> None:
    def fail(with_checkpoint: bool) -> None:
        with at_work_in(prepare_folders(Path("expert"), RECIPE, resume=False)) as unfinished:
            if with_checkpoint:
                write_checkpoint(unfinished / "checkpoint-1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail(with_checkpoint=False)
    assert list(here.iterdir()) == []
    with pytest.raises(RuntimeError):
        fail(with_checkpoint=True)
    assert [path.name for path in here.iterdir()] == ["expert.unfinished"]
    remove_folder(here / "expert.unfinished")
    assert list(here.iterdir()) == []


def test_two_runs_are_never_at_work_in_one_folder(here: Path) -> None:
    with at_work_in(prepare_folders(Path("expert"), RECIPE, resume=False)) as unfinished:
        for resume in (False, True):
            with pytest.raises(UserError, match="another program is training in expert"):
                check("expert", resume=resume)
            with (
                pytest.raises(UserError, match="another program is training in expert"),
                at_work_in(prepare_folders(Path("expert"), RECIPE, resume=resume)),
            ):
                pass
        assert (unfinished / "recipe.json").is_file()
    with at_work_in(prepare_folders(Path("expert"), RECIPE, resume=True)) as unfinished:
        remove_folder(unfinished)
    assert list(here.iterdir()) == []


def test_a_line_of_the_log_that_was_torn_is_none(here: Path) -> None:
    log = Log(here / "log.jsonl")
    log.append(step=0, right=1, n=2)
    log.append(step=1, reward=0.5)
    with log.path.open("a") as file:
        file.write('{"step": 2, "rew')
    assert [entry["step"] for entry in log.entries()] == [0, 1]
    log.forget_after(0)
    log.append(step=1, reward=0.25)
    assert log.entries() == [{"step": 0, "right": 1, "n": 2}, {"step": 1, "reward": 0.25}]
