"""The Hugging Face Hub: what a repository holds, and putting files into one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neox.config.errors import UserError
from neox.config.registry import HubFolder


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    name: str
    """Its path below the folder that was asked for."""
    url: str
    size: int
    """Bytes."""
    sha256: str | None
    """None for small text files, of which the Hub keeps another hash."""


def list_files(folder: HubFolder) -> list[HubFile]:
    """Every file below `folder`, as the Hub (HF_ENDPOINT, HF_TOKEN) lists them.

    Raises:
        UserError: the Hub does not answer or has no such folder, or it is switched off (HF_HUB_OFFLINE).
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    endpoint = os.environ.get("HF_ENDPOINT")
    with _failures_of(folder.repo):
        tree = HfApi(endpoint).list_repo_tree(
            folder.repo, folder.folder, recursive=True, revision=folder.revision, repo_type=folder.type
        )
        found = [item for item in tree if isinstance(item, RepoFile)]
    return [
        HubFile(
            item.path.removeprefix(f"{folder.folder}/"),
            hf_hub_url(folder.repo, item.path, repo_type=folder.type, revision=folder.revision, endpoint=endpoint),
            item.size,
            item.lfs.sha256 if item.lfs else None,
        )
        for item in found
    ]


def upload(repo: str, revision: str, contents: Mapping[str, Path | bytes], private: bool) -> str:
    """Puts files, by their names there, into a model's repository as one commit; returns the commit's address.

    Raises:
        UserError: the Hub does not answer or refuses, as where HF_TOKEN is missing.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(os.environ.get("HF_ENDPOINT"))
    additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
    with _failures_of(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        message = f"{len(additions)} files from neox-hpc"
        return str(api.create_commit(repo, additions, commit_message=message, revision=revision).commit_url)


@contextmanager
def _failures_of(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # What its transport, another one by its version, raises where nobody answers.
    no_answer: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (no_answer, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"the Hugging Face Hub, {repo}: {first}") from error
