"""One repository on the hub: it is fetched whole and changed by one commit, and failures are explained in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypedDict, Unpack

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from experts.outside.errors import UserError

KEPT = ("*.json", "*.jsonl", "*.safetensors", "*.md", "*.png", "*description.txt", "LICENSE*")
"""The files that go to the hub and come back."""
TIMEOUT = 10  # seconds for the hub's first answer


class PullOptions(TypedDict, total=False):
    """Further options for what is pulled, named as on the hub."""

    revision: str | None
    """A branch, tag or commit."""
    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


class CommitOptions(TypedDict, total=False):
    """Further options for a commit, named as on the hub."""

    private: bool | None
    token: str | bool | None
    branch: str | None
    create_pr: bool | None
    commit_message: str


def fetch(repo: str, *told_by: str, **options: Unpack[PullOptions]) -> Path:
    """Fetches a repository, whole and at one commit, into the hub's cache on this machine; returns its folder.

    Args:
        told_by: files, of which the repository must have one; nothing is downloaded if it has none.

    Raises:
        UserError: if there is no such repository, it is something else, or neither the hub nor its cache can give it.
    """
    there = None if options.get("local_files_only") else _files(repo, options)
    if there is not None and not set(told_by) & set(there):
        raise UserError(f"{repo} on the hub is of another kind: it has no {' and no '.join(told_by)}")
    offline: Any = {"local_files_only": True} if there is None else {}
    with _in_one_line(f"cannot pull {repo}", ", and its cache on this machine does not have it"):
        return Path(snapshot_download(repo, allow_patterns=list(KEPT), **(options | offline)))


def _files(repo: str, options: PullOptions) -> list[str] | None:
    """The files in a repository; None if the hub does not answer."""
    with _in_one_line(f"cannot pull {repo}"):
        api = HfApi(token=options.get("token"))
        try:
            info = api.model_info(repo, revision=options.get("revision"), timeout=TIMEOUT)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            raise
        except (HTTPError, OSError):
            return None
    return [file.rfilename for file in info.siblings or []]


def refuse_snapshot(folder: Path) -> None:
    """Raises UserError for a folder in the hub's cache, which must stay as on the hub."""
    if folder.parent.name == "snapshots" and (folder.parent.parent / "refs").is_dir():
        raise UserError(
            f"{folder} is in the hub's cache and must not be changed; pull the repository into a folder first"
        )


def commit(folder: Path, repo: str, options: CommitOptions) -> str:
    """Commits a folder to a repository, which is created if there is none; all of it at once, or nothing.

    Files that its folders no longer have are deleted there. (The hub's own `upload_folder` may make several commits.)

    Returns:
        The commit's address.

    Raises:
        UserError: if nobody is logged in, or the hub cannot be reached or refuses.
    """
    api, branch = HfApi(token=options.get("token")), options.get("branch")
    ours = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with _in_one_line(f"cannot push to {repo}"):
        repo = api.create_repo(repo, private=options.get("private"), exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        there = [path for path in api.list_repo_files(repo, revision=branch) if "/" in path and path not in ours]
        gone = [path for path in there if any(fnmatch(path, pattern) for pattern in KEPT)]
        done = api.create_commit(
            repo,
            [*map(CommitOperationDelete, gone), *(CommitOperationAdd(name, path) for name, path in ours.items())],
            commit_message=options.get("commit_message", "Push with selfadapt"),
            revision=branch,
            create_pr=options.get("create_pr"),
        )
    return str(done.commit_url)


@contextmanager
def _in_one_line(what: str, elsewhere: str = "") -> Iterator[None]:
    """Says in one line what the hub's client says in many; `elsewhere` is added if nobody answers."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{what}: its owner decides who has access; ask for it on its page, and log in") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what}: there is no such repository on the hub that you may read; check the name, or log in "
            "(hf auth login, or HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: it has no such revision; leave revision out for the newest") from error
    except HFValidationError as error:
        raise UserError(f"{what}: that is not the name of a repository (owner/name)") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"{what}: you are not logged in; run hf auth login, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise UserError(f"{what}: {_refusal(error)}") from error
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # front matter that the hub refuses, an upload that failed
        cause = f": {_refusal(error.__cause__)}" if isinstance(error.__cause__, HfHubHTTPError) else ""
        raise UserError(f"{what}: {' '.join(str(error).split()).rstrip('.')}{cause}") from error
    except (LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub ({constants.ENDPOINT}) does not answer"
        raise UserError(f"{what}: {why}{elsewhere}") from error


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        return "you are not logged in, or your token is not valid; run hf auth login, or set HF_TOKEN"
    if status == 403:
        return "your token cannot write there; use one that can, or another name"
    return f"the hub refuses ({status}): {error.server_message or next(iter(str(error).splitlines()), '')}"
