"""Where an application keeps uploaded files: a folder, or a bucket that speaks S3's protocol.

What is needed to remove orphans is little: list what is there, page by page, and remove one file. A further kind of
storage is a class with the two methods of `Storage`, and a branch in `storage_of`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree

from procjobs.errors import ProcjobsError
from procjobs.settings import Settings

__all__ = ["Bucket", "Folder", "Storage", "StorageError", "StoredFile", "signed", "storage_of"]

#: Files on a page: as many as S3 gives at a time.
PAGE = 1000
_TIMEOUT = 30.0


class StorageError(ProcjobsError):
    """The storage did not do what it was asked to; it is worth trying again."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the storage. key: its name there, with slashes; at: when it was last written."""

    key: str
    at: datetime


class Storage(Protocol):
    """Calls block: use them in a thread."""

    def pages(self) -> Iterator[list[StoredFile]]:
        """All files, by pages. Raises StorageError."""

    def remove(self, file: StoredFile) -> bool:
        """Remove a file unless it was written again since it was listed; False if it was, or is gone."""


def storage_of(settings: Settings) -> Storage | None:
    """The storage that the settings name; None if they name none."""
    at = settings.uploads_at
    if at is None:
        return None
    if not at.startswith("s3://"):
        return Folder(Path(at).expanduser())
    parts = urlsplit(at)
    return Bucket(
        name=parts.netloc,
        prefix=parts.path.lstrip("/"),
        endpoint=settings.uploads_endpoint or f"https://s3.{settings.uploads_region}.amazonaws.com",
        region=settings.uploads_region,
        access_key=settings.uploads_access_key or "",
        secret_key=settings.uploads_secret_key or "",
    )


@dataclass(frozen=True, slots=True)
class Folder:
    """Files below a folder. Links are neither followed nor removed, and what begins with a dot is left alone."""

    path: Path

    def pages(self) -> Iterator[list[StoredFile]]:
        page: list[StoredFile] = []
        for file in self._walk(self.path):
            page.append(file)
            if len(page) == PAGE:
                yield page
                page = []
        if page:
            yield page

    def _walk(self, folder: Path) -> Iterator[StoredFile]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            if folder == self.path:
                raise StorageError(
                    f"there is no folder {folder}", hint="set uploads_at to where the files are"
                ) from None
            return  # removed while we looked
        except OSError as error:
            raise StorageError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                at = self._written(Path(entry.path))
                if at is not None:
                    yield StoredFile(Path(entry.path).relative_to(self.path).as_posix(), at)

    @staticmethod
    def _written(path: Path) -> datetime | None:
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(found.st_mtime, UTC) if stat.S_ISREG(found.st_mode) else None

    def remove(self, file: StoredFile) -> bool:
        path = self.path / file.key
        if self._written(path) != file.at:
            return False
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error.strerror}") from error
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Files of a bucket below a prefix, addressed by path (`endpoint/bucket/key`), which every S3 understands."""

    name: str
    prefix: str
    endpoint: str
    region: str
    access_key: str
    secret_key: str

    def pages(self) -> Iterator[list[StoredFile]]:
        more: str | None = ""
        while more is not None:
            query = {"list-type": "2", "max-keys": str(PAGE), "prefix": self.prefix, "encoding-type": "url"}
            page, more = self._listed(self._ask("GET", "", query | ({"continuation-token": more} if more else {})))
            if page:
                yield page

    def _listed(self, body: bytes) -> tuple[list[StoredFile], str | None]:
        """The files of a listing, and where the next page begins."""
        try:
            found = ElementTree.fromstring(body)  # noqa: S314  expat bounds what entities expand to
        except ElementTree.ParseError as error:
            raise StorageError(f"{self.endpoint} did not answer with a listing: {error}") from error
        space = found.tag.partition("}")[0] + "}" if found.tag.startswith("{") else ""
        files = [
            StoredFile(
                unquote_plus(item.findtext(f"{space}Key", ""))[len(self.prefix) :],
                datetime.fromisoformat(item.findtext(f"{space}LastModified", "")),
            )
            for item in found.iterfind(f"{space}Contents")
        ]
        truncated = found.findtext(f"{space}IsTruncated") == "true"
        return files, found.findtext(f"{space}NextContinuationToken") if truncated else None

    def remove(self, file: StoredFile) -> bool:
        self._ask("DELETE", self.prefix + file.key, {})
        return True

    def _ask(self, method: str, key: str, query: Mapping[str, str]) -> bytes:
        path = f"/{quote(self.name, safe='')}/{quote(key, safe='/')}"
        listed = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
        url = f"{self.endpoint}{path}" + (f"?{listed}" if listed else "")
        headers = signed(
            method,
            url,
            at=datetime.now(UTC),
            region=self.region,
            access_key=self.access_key,
            secret_key=self.secret_key,
        )
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.netloc, timeout=_TIMEOUT)
        try:
            connection.request(method, url.removeprefix(f"{parts.scheme}://{parts.netloc}"), headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise StorageError(f"{self.endpoint} cannot be reached: {error}") from error
        finally:
            connection.close()
        if answer.status >= 300:
            said = body[:2000].decode(errors="replace")
            raise StorageError(f"{method} {path} was answered with {answer.status}: {said}")
        return body


def signed(
    method: str,
    url: str,
    *,
    at: datetime,
    region: str,
    access_key: str,
    secret_key: str,
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers of a request without a body, with its signature.

    AWS Signature Version 4, "Authenticating Requests: Using the Authorization Header" in the API reference of S3.
    url: its path and query are quoted, the query in order.
    """
    parts = urlsplit(url)
    moment, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    empty = hashlib.sha256(b"").hexdigest()
    sent = {**(headers or {}), "host": parts.netloc, "x-amz-content-sha256": empty, "x-amz-date": moment}
    ordered = sorted((name.lower(), value.strip()) for name, value in sent.items())
    names = ";".join(name for name, _ in ordered)
    lines = "".join(f"{name}:{value}\n" for name, value in ordered)
    canonical = "\n".join([method, parts.path or "/", parts.query, lines, names, empty])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={names},Signature={signature}"
    return {**sent, "Authorization": credential}
