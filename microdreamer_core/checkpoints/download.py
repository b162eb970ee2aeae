"""Downloading published checkpoints when the user says so: what there is, and a download that goes on after a break.

The addresses are those under which the authors publish the files. Tests use a server of their own, so the addresses themselves
have not been tried from here. Nothing in this module opens a connection except ``download``.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from .. import __version__
from ..errors import InputError
from ..util.readable import readable_size

HUB = "https://huggingface.co"
"""The only place that is told the user's token."""

TOKEN_VARIABLE = "HF_TOKEN"

_CHUNK = 1 << 18
_TIMEOUT = 60.0
_PARTIAL, _NO_SUCH_RANGE = 206, 416
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LICENCE_STABLE = "non-commercial (Stability AI)"
_LICENCE_RAIL = "OpenRAIL"


@dataclass(frozen=True)
class PublishedFile:
    """A file that its authors publish.

    Attributes:
        name: by which it is asked for.
        what: what it is.
        page: where its licence is read and, for some, accepted.
        url: of the file itself.
        file: its name, to which checkpoint loading pays attention.
        size: bytes; about, unless ``exact``.
        licence: in short, from notes of third parties; the page is what counts.
        sha256: in hexadecimal digits; None when unknown, then the hub's own is used if it tells one.
    """

    name: str
    what: str
    page: str
    url: str
    file: str
    size: int
    licence: str
    sha256: str | None = None
    exact: bool = False


def _on_hub(name: str, what: str, repository: str, file: str, size: int, licence: str) -> PublishedFile:
    page = f"{HUB}/{repository}"
    return PublishedFile(name, what, page, f"{page}/resolve/main/{file}", file, size, licence)


_STABLE, _IMAGEDREAM = "stabilityai/stable-zero123", "Peng-Wang/ImageDream"
PUBLISHED: tuple[PublishedFile, ...] = (
    _on_hub("stable-zero123", "Stable Zero123", _STABLE, "stable_zero123.ckpt", 8_580_000_000, _LICENCE_STABLE),
    _on_hub(
        "stable-zero123-c",
        "Stable Zero123 under another licence",
        _STABLE,
        "stable_zero123_c.ckpt",
        8_580_000_000,
        "Stability AI Community",
    ),
    PublishedFile(
        "zero123-xl",
        "Zero123-XL",
        "https://github.com/cvlab-columbia/zero123",
        "https://zero123.cs.columbia.edu/assets/zero123-xl.ckpt",
        "zero123-xl.ckpt",
        15_460_000_000,
        "see its page",
    ),
    _on_hub("zero123", "Zero123", "cvlab/zero123-weights", "105000.ckpt", 15_460_000_000, "see its page"),
    _on_hub("imagedream", "ImageDream, pixel", _IMAGEDREAM, "sd-v2.1-base-4view-ipmv.pt", 8_050_000_000, _LICENCE_RAIL),
    _on_hub(
        "imagedream-local", "ImageDream, local", _IMAGEDREAM, "sd-v2.1-base-4view-ipmv-local.pt", 8_050_000_000, _LICENCE_RAIL
    ),
    _on_hub("mvdream", "MVDream", "MVDream/MVDream", "sd-v2.1-base-4view.pt", 5_220_000_000, _LICENCE_RAIL),
)
"""What can be fetched. Sizes are computed from the published lists of tensors or remembered: none is exact."""


def published_file(name: str) -> PublishedFile:
    """Find the published file of a name or a file name.

    Raises:
        InputError: there is none.
    """
    for file in PUBLISHED:
        if name in (file.name, file.file):
            return file
    raise InputError(f"No published model is called {name!r} here; choose one of {', '.join(file.name for file in PUBLISHED)}.")


class Listener:
    """What a download tells; the base class hears nothing."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def progress(self, done: int, total: int | None) -> None:
        """So many bytes of the file are here, those of earlier tries among them."""


def download(file: PublishedFile, folder: Path, listener: Listener | None = None, url: str | None = None) -> Path:
    """The file in the folder, whole and checked; until then NAME.part holds what came, from which the next call goes on.

    The user's word is the caller's to ask for. $HF_TOKEN goes to the hub alone, and to no other host that it sends us to.

    Args:
        folder: made if needed.
        url: another address of the same file.

    Raises:
        InputError: no connection, a refusal, a broken connection, no room, or another file than expected; says what to do.
    """
    listener = listener or Listener()
    target = folder / file.file
    part = target.with_name(target.name + ".part")
    source = _Source(file, url or file.url, folder)
    come = part.stat().st_size if part.exists() else 0
    answer = source.ask(come)
    if answer is None:
        listener.note(f"{part.name} is no beginning of the file at the server; starting again.")
        part.unlink()
        come, answer = 0, source.ask(0)
    if answer is None:
        raise InputError(f"The server of {source.url} has no beginning of {file.file}; try again later.")
    with answer.body:
        source.check_size(answer.size)
        if come and not answer.start:
            listener.note("The server cannot go on where it stopped; starting again.")
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(file, folder, (answer.size or file.size) - answer.start)
        _receive(answer, part, listener)
    _verify(part, file.sha256 or answer.sha256, file, listener)
    os.replace(part, target)
    return target


@dataclass(frozen=True)
class _Answer:
    """The file from byte ``start`` on; size and checksum of the whole as far as the server tells them."""

    body: Any
    start: int
    size: int | None
    sha256: str | None


class _Source:
    """Where a file is asked for, and the sentences on what may go wrong there."""

    def __init__(self, file: PublishedFile, url: str, folder: Path):
        self._file = file
        self.url = self._url = url
        self._folder = folder
        self._by_hand = f"put {file.file} into {folder} by hand"

    def ask(self, start: int) -> _Answer | None:
        """The file from that byte on, or from the first where the server knows no better; None when it has no such byte.

        Raises:
            InputError: no connection, or no file.
        """
        if not re.match(r"https?://.", self._url, re.IGNORECASE):
            raise InputError(f"The address must begin with https:// or http://, got {self._url!r}; correct it.")
        redirects = _Redirects()
        headers = {"User-Agent": f"microdreamer/{__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            request = urllib.request.Request(self._url, headers=headers)
            _add_token(request)
            response = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT)
        except InputError:
            raise
        except urllib.error.HTTPError as error:
            if error.code != _NO_SUCH_RANGE or not start:
                raise InputError(self._refusal(error.code)) from error
            # everything may have come already: then the run was stopped between the last byte and the new name
            complete = (error.headers.get("Content-Range") or "").strip() == f"bytes */{start}"
            return _Answer(error, start, start, redirects.sha256) if complete else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(
                f"{self._url} cannot be reached ({getattr(error, 'reason', None) or error}); check the connection, or get the "
                f"file on another computer and {self._by_hand}."
            ) from error
        return self._answer(response, start, redirects.sha256)

    def _answer(self, response: Any, start: int, sha256: str | None) -> _Answer | None:
        if response.headers.get_content_type() == "text/html":
            response.close()
            raise InputError(f"{self._url} is a page and no file; look for the file there and {self._by_hand}.")
        begin, size = 0, _number(response.headers.get("Content-Length"))
        if response.status == _PARTIAL:
            begin, size = _content_range(response.headers.get("Content-Range"))
            if begin != start:
                response.close()
                if not start:
                    raise InputError(self._refusal(_PARTIAL))
                return None
        return _Answer(response, begin, size, sha256)

    def check_size(self, size: int | None) -> None:
        """Refuse another file before it is here.

        Raises:
            InputError: the size is known and another.
        """
        if self._file.exact and size is not None and size != self._file.size:
            raise InputError(
                f"The file at {self._url} has {size} bytes, expected {self._file.size}: it is another one; look at "
                f"{self._file.page} and {self._by_hand}."
            )

    def _refusal(self, code: int) -> str:
        page = self._file.page
        if code in (401, 403):
            token = f"set {TOKEN_VARIABLE} to an access token of that account, or " if _origin(self._url) == HUB else ""
            return (
                f"{self._url} is not given to everybody ({code}): accept the licence at {page} with an account first, then "
                f"{token}download it there in a browser and {self._by_hand}."
            )
        if code in (404, 410):
            return f"There is no file at {self._url} ({code}); look for it at {page} and {self._by_hand}, or give --url."
        return f"The server of {self._url} cannot help now (it answers {code}); try again later, or {self._by_hand}."


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the token stays with the hub, and the checksum that the hub tells on the way is kept.

    The hub sends large files from another host and says in the redirect what they are: its header X-Linked-Etag is the SHA-256.
    """

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it

    def __init__(self):
        self.sha256: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise InputError(
                f"{req.full_url} leads to an unprotected address at {_origin(newurl)}; give another one with --url."
            )
        etag = headers.get("X-Linked-Etag", "").strip('"')
        if _origin(req.full_url) == HUB and _SHA256.fullmatch(etag):
            self.sha256 = etag
        # 308 is in the method's list since Python 3.11 only
        redirected = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if redirected is not None:
            _add_token(redirected)
        return redirected


def _add_token(request: urllib.request.Request) -> None:
    """The user's token, for this one host: a redirect makes another request, which asks again."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if token and _origin(request.full_url) == HUB:
        if not re.fullmatch("[!-~]+", token):  # the library's own complaint would show it
            raise InputError(f"${TOKEN_VARIABLE} is no access token, for it has spaces or foreign letters in it; set it again.")
        request.add_unredirected_header("Authorization", f"Bearer {token}")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _content_range(text: str | None) -> tuple[int, int | None]:
    """(first byte, size of the whole) of "bytes 5-9/10"; the first is -1 when it is something else."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", (text or "").strip())
    return (int(match[1]), _number(match[2])) if match else (-1, None)


def _check_room(file: PublishedFile, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{file.file} needs {readable_size(needed)} more, {readable_size(free)} are free in {folder}; make room, or choose "
            "another folder with --to."
        )


def _receive(answer: _Answer, part: Path, listener: Listener) -> None:
    """Append what the server sends, or begin the file with it.

    Raises:
        InputError: less comes than was promised.
    """
    done, failure = answer.start, None
    with part.open("ab" if answer.start else "wb") as out:
        listener.progress(done, answer.size)
        while done != answer.size:
            try:
                chunk = answer.body.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                failure = str(error) or type(error).__name__
                break
            if not chunk:
                break
            out.write(chunk)
            done += len(chunk)
            listener.progress(done, answer.size)
    if failure or done != (answer.size or done):
        total = "" if answer.size is None else f" of {readable_size(answer.size)}"
        raise InputError(
            f"The connection broke after {readable_size(done)}{total} ({failure or 'it ended early'}); {part} keeps what came: "
            "give the same command again to go on."
        )


def _verify(part: Path, sha256: str | None, file: PublishedFile, listener: Listener) -> None:
    """Hold the file to its checksum.

    Raises:
        InputError: it is another one; the file goes out of the next try's way, to NAME.damaged.
    """
    if sha256 is None:
        listener.note("No checksum is known for this file, so only its length was checked.")
        return
    listener.note("Checking the file's SHA-256.")
    found = _digest(part)
    if found != sha256:
        damaged = part.with_suffix(".damaged")
        os.replace(part, damaged)
        raise InputError(
            f"What came is not {file.file}: its SHA-256 is {found}, expected {sha256}; it is kept as {damaged}: remove it and "
            f"try again, or look at {file.page}."
        )
    listener.note("The SHA-256 is right.")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
