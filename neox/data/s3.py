"""Objects in S3 and what speaks its protocol: signed addresses, listing, uploads in parts, removal."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox.config.errors import UserError

SIGNATURE_LIFETIME_S = 3600
PLACE = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)/?(.*)")


class StorageError(OSError):
    """The object store does not answer, or refuses; another attempt may succeed."""


@dataclass(frozen=True)
class Place:
    """A bucket and a key, or the beginning of keys."""

    bucket: str
    key: str

    def __truediv__(self, name: str) -> Place:
        return Place(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def place(url: str) -> Place:
    """What s3://bucket/key names.

    Raises:
        UserError: it is no such URL.
    """
    match = PLACE.fullmatch(url)
    if not match:
        raise UserError(f"{url}: must be s3://BUCKET/KEY")
    return Place(match[1], match[2].strip("/"))


def signed_url(url: str) -> str:
    """An https address that gives the object to whoever asks, for SIGNATURE_LIFETIME_S; without credentials unsigned.

    Raises:
        UserError: boto3 is missing, or its configuration is wrong.
    """
    where = place(url)
    with failures_of(url):
        parameters = {"Bucket": where.bucket, "Key": where.key}
        address: str = client().generate_presigned_url("get_object", parameters, SIGNATURE_LIFETIME_S)
        return address


@functools.cache
def client() -> Any:
    """The connection to the object store that AWS_* variables and ~/.aws say; threads may share it.

    Raises:
        UserError: boto3 is missing.
    """
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise UserError("s3:// needs the package boto3: pip install 'neox-hpc[s3]'") from None
    session = boto3.session.Session()
    signature = "s3v4" if session.get_credentials() else UNSIGNED
    retries = {"mode": "standard", "total_max_attempts": 5}
    config = Config(signature_version=signature, retries=retries, connect_timeout=10, read_timeout=60)
    return session.client("s3", config=config)


@contextmanager
def failures_of(url: object) -> Iterator[None]:
    """Turns what boto3 raises into a StorageError, or a UserError where no further attempt can help."""
    client()  # so that a missing boto3 is said first
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        if 400 <= status < 500 and status not in (408, 429):
            raise UserError(f"{url}: {_line(error)}") from error
        raise StorageError(f"{url}: {_line(error)}") from error
    except (Boto3Error, ConnectionError, HTTPClientError) as error:
        raise StorageError(f"{url}: {_line(error)}") from error
    except BotoCoreError as error:
        raise UserError(f"{url}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def upload(path: Path, target: Place, part_bytes: int, sha256: str = "") -> None:
    """Sends a file, in parts of `part_bytes` where it is larger; the object appears when it is whole.

    `sha256` is kept with it, for `sha256_of`.

    Raises:
        StorageError: it did not succeed now. UserError: it cannot. Of neither is anything visible.
    """
    with failures_of(target):
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=part_bytes, multipart_chunksize=part_bytes)
        extra = {"Metadata": {"sha256": sha256}}
        client().upload_file(os.fspath(path), target.bucket, target.key, ExtraArgs=extra, Config=config)


def sha256_of(target: Place) -> str | None:
    """The hash that `upload` was given; None: there is no such object, or it came otherwise."""
    with failures_of(target):
        from botocore.exceptions import ClientError

        try:
            found: str | None = client().head_object(Bucket=target.bucket, Key=target.key)["Metadata"].get("sha256")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return None
        return found


def read(source: Place) -> bytes:
    """A whole small object."""
    with failures_of(source):
        content: bytes = client().get_object(Bucket=source.bucket, Key=source.key)["Body"].read()
        return content


def keys(prefix: Place) -> list[str]:
    """The keys of all objects below `prefix`, without it."""
    with failures_of(prefix):
        start = f"{prefix.key}/" if prefix.key else ""
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=start)
        return [entry["Key"].removeprefix(start) for page in pages for entry in page.get("Contents", ())]


def remove(target: Place) -> None:
    """Removes an object; one that is not there is none."""
    with failures_of(target):
        client().delete_object(Bucket=target.bucket, Key=target.key)


def abort_uploads(prefix: Place) -> int:
    """Gives up the uploads below `prefix` that were never finished, whose parts would be paid for; returns how many."""
    with failures_of(prefix):
        pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=prefix.bucket, Prefix=f"{prefix.key}/")
        found = [entry for page in pages for entry in page.get("Uploads", ())]
        for entry in found:
            client().abort_multipart_upload(Bucket=prefix.bucket, Key=entry["Key"], UploadId=entry["UploadId"])
        return len(found)
