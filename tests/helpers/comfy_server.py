"""A real ComfyUI server with only our pack in it, and a client of its HTTP and websocket interface."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = "comfyui-microdreamer"
"""The pack's folder in custom_nodes."""
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Event:
    """One message of the websocket; ``kind`` is "preview" for pictures that come while a node runs."""

    seconds: float
    kind: str
    data: Any


@dataclass
class Run:
    """What became of a prompt.

    Attributes:
        status: "success", "error", "interrupted", or "rejected" when the server did not take the prompt.
        error: the text of the exception, or of the rejection.
        outputs: what /history lists, by node.
        seconds: from the prompt to its end, as the client sees it.
    """

    status: str = ""
    error: str = ""
    outputs: dict[str, dict] = field(default_factory=dict)
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)

    def of(self, kind: str) -> list[dict]:
        return [event.data for event in self.events if event.kind == kind]

    @property
    def ran(self) -> list[str]:
        """The nodes that ran, in order, under the ids of the nodes that the user wired."""
        begun = [data for data in self.of("executing") if data.get("node") is not None]
        return [data.get("display_node") or data["node"] for data in begun]

    @property
    def files(self) -> list[dict]:
        """All that the outputs list as files: filename, subfolder, type."""
        lists = [entries for output in self.outputs.values() for entries in output.values() if isinstance(entries, list)]
        return [entry for entries in lists for entry in entries if isinstance(entry, dict) and "filename" in entry]


class Server:
    """Starts on entering a ``with`` block and is ended on leaving it; writes only below ``base``.

    ``packs`` are folders of further nodes.
    """

    def __init__(self, comfyui: Path, base: Path, python: str = sys.executable, packs: Sequence[Path] = ()):
        self.base, self._packs = base, packs
        self.log_path = base / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [python, str(comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        self._command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
        self._command += ["--disable-auto-launch", "--disable-api-nodes"]

    def __enter__(self) -> Server:
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        (self.base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
        for pack in self._packs:
            (self.base / "custom_nodes" / pack.name).symlink_to(pack, target_is_directory=True)
        for picture in (ROOT / "samples").glob("*.png"):
            shutil.copy(picture, self.base / "input")
        self._log = self.log_path.open("wb")
        # torch's threads wait for each other by spinning: beside a browser on two cores, two of them take ten times as long
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, cwd=self.base, env=environment
        )
        try:
            self._wait_until_it_answers(300)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def kill(self) -> None:
        """End it as a crash would, before the ``with`` block does."""
        self._process.kill()
        self._process.wait()

    def _wait_until_it_answers(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"The server ended with {self._process.returncode}:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"The server did not answer within {seconds} s:\n{self.log()[-4000:]}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def resident_mib(self) -> float:
        """The server's memory (Linux)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def get(self, path: str, **query: str) -> bytes:
        suffix = "?" + urllib.parse.urlencode(query) if query else ""
        with urllib.request.urlopen(self.url + path + suffix, timeout=60) as answer:
            return answer.read()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: dict) -> tuple[int, Any]:
        """Status and answer; a refusal is an answer too."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def path(self, entry: dict) -> Path:
        """Where a file of ``Run.files`` lies."""
        return self.base / entry["type"] / entry.get("subfolder", "") / entry["filename"]

    def view(self, entry: dict) -> bytes:
        """The same file as a client gets it."""
        return self.get("/view", **{name: entry.get(name, "") for name in ("filename", "subfolder", "type")})

    def run(self, graph: dict, on_event: Callable[[Event], None] = lambda event: None, timeout: float = 600) -> Run:
        """Send a graph in API format and wait for its end; ``on_event`` sees every message as it comes."""
        return asyncio.run(asyncio.wait_for(self._run(graph, on_event), timeout))

    async def _run(self, graph: dict, on_event: Callable[[Event], None]) -> Run:
        import aiohttp

        run, client = Run(), uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            begin = time.perf_counter()
            code, answer = await asyncio.to_thread(self.post, "/prompt", {"prompt": graph, "client_id": client})
            if code != 200:
                return Run("rejected", json.dumps(answer))
            prompt = answer["prompt_id"]
            async for message in socket:
                event = _event(message, time.perf_counter() - begin)
                run.events.append(event)
                on_event(event)
                if event.kind == "executing" and event.data["node"] is None and event.data.get("prompt_id") == prompt:
                    break
            run.seconds = time.perf_counter() - begin
        last = [event for event in run.events if event.kind in ENDS][-1]
        run.status = last.kind.removeprefix("execution_")
        run.error = last.data.get("exception_message", "")
        run.outputs = self.json(f"/history/{prompt}")[prompt]["outputs"]
        return run


def _event(message, seconds: float) -> Event:
    if isinstance(message.data, bytes):
        return Event(seconds, "preview", {})
    content = json.loads(message.data)
    return Event(seconds, content["type"], content.get("data", {}))
