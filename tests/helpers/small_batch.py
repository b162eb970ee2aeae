"""Batches without their cost: workers that are threads, tasks that compute nothing, a server that renders nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from microdreamer_core.batch.share import ThreadWorker
from microdreamer_core.batch.tasks import Task, save_result


class WorkerThread(ThreadWorker):
    """In place of ``util.processes.WorkerProcess``."""

    def __init__(self, task, environment=None):
        super().__init__(task)


def note(task: Task, check=None) -> dict:
    """Log that an item is done; the worker is killed in the first try of the item fatal, in every one of deadly."""
    log = task.folder.parent / f"{task.item.name}.log"
    tries = len(log.read_text().splitlines()) if log.exists() else 0
    task.folder.mkdir(exist_ok=True)
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if task.item.name == "deadly" or (task.item.name == "fatal" and not tries):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    result = {"files": {}, "numbers": {"seconds": 0.0}}
    save_result(task, result)
    return result


def note_there(task: Task, contents: dict, version: str) -> tuple[dict, dict]:
    """In place of ``cluster._make_there``, on machines that share the output folder; its file is what it was sent."""
    sent = b"".join(contents.values())
    return note(task), {"sent.glb": sent, "version.txt": version.encode()}


class FakeServer:
    """ComfyUI's API; a graph ends at once and shows one file with the content of its picture.

    Args:
        dies: after so many graphs it closes every connection without an answer.
    """

    def __init__(self, dies: float = float("inf")):
        self.dies, self.graphs, self.uploads, self.history = dies, [], {}, {}
        self.refuse = lambda graph: None
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def queue(self, graph):
        self.graphs.append(graph)
        why = self.refuse(graph)
        status = {"status_str": "error", "messages": [["execution_error", {"node_type": "X", "exception_message": why}]]}
        shown = {"5": {"3d": [{"filename": "out.glb", "subfolder": "../a b", "type": "output"}], "result": ["a/b.ply", None]}}
        done = {"outputs": shown, "status": {"status_str": "success"}}
        self.history[str(len(self.graphs))] = {"outputs": {}, "status": status} if why else done
        return {"prompt_id": str(len(self.graphs))}

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802
                place, _, query = self.path.partition("?")
                if len(server.graphs) > server.dies:
                    return self.connection.close()
                if place == "/view":
                    return self._answer(json.dumps(dict(urllib.parse.parse_qsl(query))).encode())
                if place == "/queue":
                    return self._answer(b'{"queue_running": [], "queue_pending": []}')
                identifier = place.rpartition("/")[2]
                return self._answer(json.dumps({k: v for k, v in server.history.items() if k == identifier}).encode())

            def do_POST(self):  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/upload/image":
                    head, _, rest = body.partition(b'name="image"; filename="')
                    name, _, content = rest.partition(b'"\r\n\r\n')
                    server.uploads[name.decode()] = content.rpartition(b"\r\n--")[0]
                    return self._answer(b"{}")
                return self._answer(json.dumps(server.queue(json.loads(body)["prompt"])).encode())

            def _answer(self, content):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler


def logs(folder: Path) -> dict[str, int]:
    """How often every item was tried."""
    return {path.stem: len(path.read_text().splitlines()) for path in sorted(folder.glob("*.log"))}
