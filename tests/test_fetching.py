"""Fetching published files, from a server on the loopback: whole, resumed, refused, broken, and who is told the token."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from microdreamer_core.checkpoints import download as fetching
from microdreamer_core.checkpoints.download import PUBLISHED, PublishedFile, download, published_file
from microdreamer_core.cli import main as cli
from microdreamer_core.cli.progress import DownloadProgress
from microdreamer_core.errors import InputError

CONTENT = bytes(range(256)) * 12_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """One file, and how it is served: plain, no_range, cut (the connection ends early), shifted, page, unsized, or a code."""

    daemon_threads = True

    def __init__(self, how="plain", content=CONTENT, to=None, etag=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.how, self.content, self.to, self.etag = how, content, to, etag
        self.asked = []

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self):
        return f"{self.origin}/weights.ckpt"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append({name.lower(): value for name, value in self.headers.items()})
        if server.to:
            self.answer(server.how, {"Location": server.to, **({"X-Linked-Etag": f'"{server.etag}"'} if server.etag else {})})
        elif isinstance(server.how, int):
            self.answer(server.how, {})
        elif server.how == "page":
            self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in</html>")
        elif server.how == "unsized":
            self.answer(200, {}, server.content, sized=False)
        else:
            self.file()

    def file(self):
        content, asked = self.server.content, self.headers.get("Range")
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.how != "no_range" else 0
        if start and start >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        sent = content[start : start + 1_500_000] if self.server.how == "cut" else content[start:]
        if self.server.how == "shifted":  # another part than was asked for
            self.answer(206, {"Content-Range": f"bytes 7-{len(content) - 1}/{len(content)}"}, content[7:])
            return
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.answer(206 if start else 200, {**span, "Content-Length": str(len(content) - start)}, sent)

    def answer(self, status, headers, body=b"", sized=True):
        self.send_response(status)
        if sized:
            headers = {"Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve():
    """Starts servers, and stops them at the end."""
    with ExitStack() as stack:

        def start(*args, **kwargs):
            server = stack.enter_context(Server(*args, **kwargs))
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(server.shutdown)
            return server

        yield start


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


class Notes(fetching.Listener):
    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, done, total):
        self.steps.append((done, total))


def offered(server, **changes) -> PublishedFile:
    page = "https://models.example/weights"
    file = PublishedFile("weights", "some weights", page, server.url, "weights.ckpt", len(CONTENT), "MIT")
    return replace(file, **changes)


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def begun(folder: Path, content: bytes) -> Path:
    part = folder / "weights.ckpt.part"
    part.write_bytes(content)
    return part


@pytest.mark.parametrize("how", ["plain", "no_range", "unsized"])
def test_a_file_arrives_whole(serve, tmp_path, how):
    server, heard = serve(how), Notes()
    path = download(offered(server, sha256=DIGEST), tmp_path / "new" / "models", heard)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["weights.ckpt"]
    total = None if how == "unsized" else len(CONTENT)
    assert heard.steps[0] == (0, total) and heard.steps[-1] == (len(CONTENT), total)
    assert heard.notes[-1] == "The SHA-256 is right."
    assert "range" not in server.asked[0] and "authorization" not in server.asked[0]


def test_a_broken_download_goes_on_where_it_stopped(serve, tmp_path):
    server, heard = serve("cut"), Notes()
    with pytest.raises(InputError, match=r"broke after 1\.5 MB of 3\.1 MB .*weights\.ckpt\.part keeps what came"):
        download(offered(server), tmp_path)
    assert names(tmp_path) == ["weights.ckpt.part"]
    server.how = "plain"
    download(offered(server, sha256=DIGEST), tmp_path, heard)
    assert (tmp_path / "weights.ckpt").read_bytes() == CONTENT and names(tmp_path) == ["weights.ckpt"]
    assert server.asked[1]["range"] == "bytes=1500000-" and heard.steps[0] == (1_500_000, len(CONTENT))


def test_a_server_without_ranges_sends_everything_again(serve, tmp_path):
    heard = Notes()
    begun(tmp_path, b"x" * 1000)
    download(offered(serve("no_range")), tmp_path, heard)
    assert (tmp_path / "weights.ckpt").read_bytes() == CONTENT
    assert heard.notes[0].startswith("The server cannot resume")


def test_a_beginning_longer_than_the_file_is_thrown_away(serve, tmp_path):
    server, heard = serve(), Notes()
    begun(tmp_path, CONTENT + b"x")
    download(offered(server), tmp_path, heard)
    assert (tmp_path / "weights.ckpt").read_bytes() == CONTENT and names(tmp_path) == ["weights.ckpt"]
    assert "does not match the file" in heard.notes[0] and [request.get("range") for request in server.asked][1] is None


def test_another_part_than_was_asked_for_is_not_taken(serve, tmp_path):
    server, heard = serve("shifted"), Notes()
    begun(tmp_path, CONTENT[:1000])
    with pytest.raises(InputError, match="status 206"):
        download(offered(server), tmp_path, heard)
    assert "does not match the file" in heard.notes[0] and names(tmp_path) == []
    begun(tmp_path, CONTENT[:7])
    download(offered(server, sha256=DIGEST), tmp_path)


def test_a_beginning_that_is_everything_is_only_checked(serve, tmp_path):
    heard = Notes()
    begun(tmp_path, CONTENT)
    download(offered(serve(), sha256=DIGEST), tmp_path, heard)
    assert names(tmp_path) == ["weights.ckpt"] and heard.steps == [(len(CONTENT), len(CONTENT))]
    (tmp_path / "weights.ckpt").unlink()
    begun(tmp_path, CONTENT[::-1])
    with pytest.raises(InputError, match="SHA-256"):
        download(offered(serve(), sha256=DIGEST), tmp_path)


def test_a_wrong_checksum_keeps_the_file_apart(serve, tmp_path):
    with pytest.raises(InputError, match=rf"SHA-256 is {DIGEST}, expected 0000.*kept as .*weights\.ckpt\.damaged"):
        download(offered(serve(), sha256="0" * 64), tmp_path)
    assert names(tmp_path) == ["weights.ckpt.damaged"]
    download(offered(serve(), sha256=DIGEST), tmp_path)
    assert names(tmp_path) == ["weights.ckpt", "weights.ckpt.damaged"]


def test_without_a_checksum_that_is_said(serve, tmp_path):
    heard = Notes()
    download(offered(serve()), tmp_path, heard)
    assert "No checksum is known" in heard.notes[-1]


def test_another_size_than_the_known_one_is_refused_at_once(serve, tmp_path):
    with pytest.raises(InputError, match="has 3072000 bytes, expected 5: it is another file"):
        download(offered(serve(), size=5, exact=True), tmp_path)
    assert names(tmp_path) == []
    download(offered(serve(), size=5), tmp_path)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (404, r"There is no file at .*\(404\); look for it at https://models\.example"),
        (401, r"\(401\): accept the licence at https://models\.example.* in a browser and put weights\.ckpt into .* by hand"),
        (403, r"\(403\): accept the licence"),
        (503, "status 503"),
        ("page", "is a web page, not a file"),
    ],
)
def test_refusals_say_what_to_do(serve, tmp_path, how, sentence):
    begun(tmp_path, b"kept")
    with pytest.raises(InputError, match=sentence):
        download(offered(serve(how)), tmp_path)
    assert (tmp_path / "weights.ckpt.part").read_bytes() == b"kept"


def test_the_hubs_refusal_names_the_token(serve, tmp_path, monkeypatch):
    hub = serve(401)
    monkeypatch.setattr(fetching, "HUB", hub.origin)
    with pytest.raises(InputError, match="then set HF_TOKEN to an access token of that account, or download it there"):
        download(offered(hub), tmp_path)


def test_no_connection_and_no_address(serve, tmp_path):
    server = Server()
    server.server_close()  # nobody listens at its port any more
    folder = tmp_path / "models"
    with pytest.raises(InputError, match="cannot be reached .*put weights.ckpt into .* by hand"):
        download(offered(server), folder)
    for address in ("file:///etc/hosts", "weights.ckpt", "ftp://127.0.0.1/x"):
        with pytest.raises(InputError, match="must begin with https"):
            download(offered(server), folder, url=address)
    with pytest.raises(InputError, match="cannot be reached"):
        download(offered(server), folder, url="http://[")
    assert not folder.exists()


def test_a_full_disk_is_found_before(serve, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(9, 9, 1_000_000))
    with pytest.raises(InputError, match=r"needs 3\.1 MB more, 1\.0 MB are free"):
        download(offered(serve()), tmp_path)
    assert names(tmp_path) == []
    begun(tmp_path, CONTENT[:-500_000])
    download(offered(serve(), sha256=DIGEST), tmp_path)


def test_the_token_stays_with_the_hub(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " secret\n")
    store = serve()
    hub = serve(302, to=store.url, etag=DIGEST)
    moved = serve(308, to=f"{hub.origin}/elsewhere")
    monkeypatch.setattr(fetching, "HUB", hub.origin)
    heard = Notes()
    download(offered(hub), tmp_path / "a", heard)
    assert hub.asked[-1]["authorization"] == "Bearer secret" and "authorization" not in store.asked[-1]
    assert heard.notes[-1] == "The SHA-256 is right.", "the hub tells the checksum in its redirect"
    # a host that leads to the hub is not told, the hub is
    download(offered(moved), tmp_path / "b")
    assert "authorization" not in moved.asked[-1] and hub.asked[-1]["authorization"] == "Bearer secret"
    assert "authorization" not in store.asked[-1]
    # nor is a mirror that was asked for by its address
    download(offered(hub), tmp_path / "c", url=store.url)
    assert "authorization" not in store.asked[-1]
    begun(tmp_path, CONTENT[:100])
    download(offered(hub), tmp_path)
    assert store.asked[-1]["range"] == "bytes=100-" and (tmp_path / "weights.ckpt").read_bytes() == CONTENT


def test_a_token_that_is_none_is_not_shown(serve, tmp_path, monkeypatch):
    hub = serve()
    monkeypatch.setattr(fetching, "HUB", hub.origin)
    for token in ("sec\nret", "sec ret", "s\u00e9cret"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match="HF_TOKEN is no access token") as refused:
            download(offered(hub), tmp_path)
        assert "ret" not in str(refused.value)
    assert not hub.asked


def test_only_the_hub_is_believed_about_checksums(serve, tmp_path, monkeypatch):
    hub = serve(302, to=serve().url, etag="0" * 64)
    download(offered(hub), tmp_path / "a")
    monkeypatch.setattr(fetching, "HUB", hub.origin)
    with pytest.raises(InputError, match="expected 0000"):
        download(offered(hub), tmp_path / "b")
    hub.etag = "no checksum"
    download(offered(hub), tmp_path / "c")


def test_no_way_leads_from_protected_to_unprotected():
    redirects = fetching._Redirects()
    request = fetching.urllib.request.Request("https://models.example/x")
    with pytest.raises(InputError, match="unencrypted address"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://models.example/x")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rate_and_time_left_are_shown():
    stream = Terminal()
    bar = DownloadProgress(stream)
    bar.progress(2_000_000_000, 8_000_000_000)
    bar.note("trying again")
    bar.progress(8_000_000_000, 8_000_000_000)
    shown = stream.getvalue()
    assert "25%" in shown and "2.00G/8.00G" in shown and "B/s" in shown and "\rmicrodreamer: trying again\n" in shown
    assert "100%" in shown.split("\r")[-1] and shown.endswith("\n")


@pytest.mark.parametrize("total", [10**9, None])
def test_without_a_terminal_there_are_few_lines(total):
    stream = io.StringIO()
    bar = DownloadProgress(stream)
    for done in range(0, 10**9 + 1, 10**6):
        bar.progress(done, total)
    assert 1 <= len(stream.getvalue().replace("\r", "\n").split()) / 3 < 20


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_sound():
    asked = [name for file in PUBLISHED for name in (file.name, file.file)]
    assert len(set(asked)) == len(asked)
    for file in PUBLISHED:
        assert file.url.startswith("https://") and file.page.startswith("https://") and file.url.endswith(f"/{file.file}")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert published_file(file.file) == published_file(file.name) == file
    with pytest.raises(InputError, match=r"called 'nerf' here; choose one of .*mvdream\."):
        published_file("nerf")


def test_names_of_files_tell_the_loader_the_variant():
    from microdreamer_core.checkpoints.load import _variant

    expected = {
        "stable-zero123": ("zero123", "stable"),
        "stable-zero123-c": ("zero123", "stable"),
        "zero123-xl": ("zero123", "xl"),
        "zero123": ("zero123", "plain"),
        "imagedream": ("imagedream", "pixel"),
        "imagedream-local": ("imagedream", "local"),
    }
    for name, (family, variant) in expected.items():
        assert _variant(family, published_file(name).file, "auto") == variant


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(serve, tmp_path, monkeypatch):
    """A server, its file in the table, and a models folder."""
    server = serve()
    monkeypatch.setattr(fetching, "PUBLISHED", (offered(server),))
    monkeypatch.setenv("MICRODREAMER_MODELS", str(tmp_path / "models"))
    return server


def run(*args):
    return cli.main([str(arg) for arg in args])


def test_the_list_asks_nobody(shop, capsys):
    assert run("fetch") == cli.DONE
    out = capsys.readouterr().out
    assert "weights.ckpt" in out and "about 3.1 MB" in out and "MIT" in out and not shop.asked


def test_nothing_is_fetched_without_the_users_word(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal
    assert run("fetch", "weights") == cli.UNUSABLE
    assert "no terminal" in capsys.readouterr().err
    for answer in ("", "\n", "n\n", "yo\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert run("fetch", "weights") == cli.STOPPED
    out, err = capsys.readouterr()
    assert out.count("[y/N] Nothing was downloaded.") == 4 and "stopped" in err
    assert not shop.asked and not (tmp_path / "models").exists()


def test_a_yes_fetches_into_the_models_folder(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("Y\n"))
    assert run("fetch", "weights") == cli.DONE
    out, err = capsys.readouterr()
    target = tmp_path / "models" / "weights.ckpt"
    assert target.read_bytes() == CONTENT
    for shown in ("about 3.1 MB", "MIT", "https://models.example/weights", shop.url, str(target)):
        assert shown in out
    assert "100%" in err
    assert run("fetch", "weights.ckpt", "--yes") == cli.DONE
    assert "there already" in capsys.readouterr().out and len(shop.asked) == 1


def test_another_place_and_another_address(shop, serve, tmp_path, capsys):
    mirror = serve()
    assert run("fetch", "weights", "--yes", "--to", tmp_path / "there", "--url", mirror.url) == cli.DONE
    assert names(tmp_path / "there") == ["weights.ckpt"] and mirror.asked and not shop.asked
    assert mirror.url in capsys.readouterr().out


def test_failures_are_one_sentence_and_exit_code_2(shop, capsys):
    shop.how = 404
    assert run("fetch", "weights", "--yes") == cli.UNUSABLE
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("microdreamer: There is no file")


def test_ctrl_c_keeps_what_came(shop, tmp_path, capsys, monkeypatch):
    def stop(self, done, total):
        if done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DownloadProgress, "progress", stop)
        assert run("fetch", "weights", "--yes") == cli.STOPPED
    assert "continues from there" in capsys.readouterr().err
    part = tmp_path / "models" / "weights.ckpt.part"
    assert 0 < part.stat().st_size < len(CONTENT)
    assert run("fetch", "weights", "--yes") == cli.DONE
    assert names(part.parent) == ["weights.ckpt"] and shop.asked[1]["range"] == f"bytes={fetching._CHUNK}-"


def test_listing_needs_no_torch():
    program = "import sys; from microdreamer_core.cli import main; main.main(['fetch']); sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True)
