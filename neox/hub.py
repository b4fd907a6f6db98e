"""The Hugging Face Hub: what a repository holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
        tree = HfApi(endpoint).list_repo_tree(folder.repo, folder.folder, recursive=True, repo_type=folder.type)
        found = [item for item in tree if isinstance(item, RepoFile)]
    return [
        HubFile(
            item.path.removeprefix(f"{folder.folder}/"),
            hf_hub_url(folder.repo, item.path, repo_type=folder.type, endpoint=endpoint),
            item.size,
            item.lfs.sha256 if item.lfs else None,
        )
        for item in found
    ]


@contextmanager
def _failures_of(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"the Hugging Face Hub, {repo}: {first}") from error
