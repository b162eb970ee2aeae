"""A batch on ComfyUI servers: the image and the table's values go into a workflow, and its outputs come back."""

from __future__ import annotations

import copy
import http.client
import io
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import Cancelled, InputError
from ..io.pictures import read_picture
from ..job.record import hash_values
from ..util.atomic import write_bytes
from ..util.hooks import Hook
from ..util.image_files import is_heic
from ..util.images import to_uint8
from .items import Item
from .share import ThreadWorker, Worker, WorkerLost
from .tasks import Task, check_files, save_result, stamp_content, write_still, write_thumbnail

Graph = dict[str, dict[str, Any]]

_FOLDER = "microdreamer_batch"
_EXAMPLE, _LOADER = "MicroDreamerExamplePicture", "LoadImage"
_TIMEOUT, _TRIES, _POLL = 60.0, 3, 0.5


def read_workflow(path: Path) -> Graph:
    """Read a workflow in ComfyUI's API format.

    Raises:
        InputError: it is none.
    """
    try:
        graph = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path.name} is no workflow ({error}); export it with ComfyUI's menu: Export (API).") from error
    nodes = graph.values() if isinstance(graph, dict) else [None]
    if not all(isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict) for node in nodes):
        raise InputError(f"{path.name} is not in the API format of workflows; export it with ComfyUI's menu: Export (API).")
    return graph


def plan_request(item: Item, output: Path, workflow: Graph) -> Task:
    """Put an item into a copy of the workflow.

    Its image goes into the Load Image node (or the pack's example picture), its prompt and every other column into the input
    of that name that is not linked; if several nodes have one, the column is called NODE.INPUT, with the node's id or title.

    Raises:
        InputError: the workflow has no place for something of the item, or several for its image.
    """
    check_files(item)
    graph = copy.deepcopy(workflow)
    values = dict(item.options)
    if item.prompt is not None:
        values["prompt"] = item.prompt
    elif item.picture is not None and item.picture.with_suffix(".txt").is_file() and len(_list_places(graph, "prompt")) == 1:
        values["prompt"] = item.picture.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()
    for name, value in values.items():
        _set_input(graph, name, value)
    content = stamp_content(item.picture)
    if item.mask is not None:
        raise InputError(f"{item.name} has a mask, which goes into no workflow; give pictures with transparency.")
    if item.picture is not None:
        suffix = ".png" if is_heic(item.picture) else item.picture.suffix.lower()
        _set_picture(graph, f"{_FOLDER}/{content}{suffix}")
    key = hash_values(graph)
    return Task(item, output / item.name, key, key, graph=graph)


def check_workflow(workflow: Graph, items: Sequence[Item]) -> None:
    """Check that the workflow has a place for everything that any of the items has.

    Raises:
        InputError: it has not.
    """
    for name in {name for item in items for name in item.options} | {"prompt" for item in items if item.prompt is not None}:
        _find_place(workflow, name)
    if any(item.picture is not None for item in items):
        _set_picture(copy.deepcopy(workflow), "")


def start_workers(urls: Sequence[str]) -> Sequence[Worker]:
    """Reach the servers; one that does not answer is left out.

    Raises:
        InputError: an address is none, or no server answers.
    """
    servers, reason = [], ""
    for url in dict.fromkeys(url.rstrip("/") for url in urls):
        if not re.fullmatch(r"https?://[^\s/?#\[\]]+(/[^\s?#]*)?", url):
            raise InputError(f"A server's address looks like http://127.0.0.1:8188, got {url!r}; check --comfy.")
        try:
            _json(url, "/queue")
            servers.append(url)
        except (WorkerLost, InputError) as error:
            reason = str(error)
    if not servers:
        raise InputError(f"No ComfyUI server answers ({reason}); start it, or check --comfy.")
    return [ThreadWorker(partial(make_by_server, url=url)) for url in servers]


def make_by_server(task: Task, check: Hook, url: str) -> dict:
    """Run a task's graph on a server, write its outputs, and save the result.

    Raises:
        WorkerLost: the server does not answer any more, or has forgotten the task.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    write_thumbnail(task)
    begin = time.monotonic()
    try:
        if task.item.picture is not None:
            _upload(url, task)
        outputs = _run(url, task.graph, check)
        files = {path.name: path.name for path in _download(url, task.folder, outputs)}
        files |= write_still(task.folder, list(files))
        result = {"files": files, "numbers": {"seconds": round(time.monotonic() - begin, 1), "server": url}}
        if not files:
            result = {"failed": "The workflow wrote no files; add a node that saves something."}
    except InputError as error:
        result = {"failed": str(error)}
    save_result(task, result)
    return result


def _set_picture(graph: Graph, name: str) -> None:
    loaders = [node for node in graph.values() if node["class_type"] == _LOADER]
    examples = [node for node in graph.values() if node["class_type"] == _EXAMPLE]
    found = loaders or examples
    if len(found) > 1:  # one that is called like the column
        found = [node for node in found if node.get("_meta", {}).get("title", "").lower() == "picture"]
    if len(found) != 1:
        many = len(loaders or examples)
        raise InputError(f"The workflow has {many} Load Image nodes, one is needed; give the picture's the title Picture.")
    found[0].update(class_type=_LOADER, inputs={"image": name})


def _set_input(graph: Graph, name: str, value: str) -> None:
    inputs, key = _find_place(graph, name)
    try:
        inputs[key] = _parse(value, inputs[key])
    except ValueError as error:
        raise InputError(f"The workflow's input {name!r} is {inputs[key]!r:.40} and cannot become {value!r:.40}.") from error


def _find_place(graph: Graph, name: str) -> tuple[dict, str]:
    """The inputs of the node that has such an unlinked one, and its name there."""
    found = _list_places(graph, name)
    if len(found) == 1:
        return graph[found[0]]["inputs"], name.rpartition(".")[2]
    which = f"several: {', '.join(f'{identifier}.{name}' for identifier in found)}" if found else "none"
    raise InputError(f"A column {name!r} needs one unlinked input of that name in the workflow, and it has {which}.")


def _list_places(graph: Graph, name: str) -> list[str]:
    place, _, key = name.rpartition(".")
    return [
        identifier
        for identifier, node in graph.items()
        if (not place or place in (identifier, node.get("_meta", {}).get("title")))
        and not isinstance(node["inputs"].get(key, []), list)
    ]


def _parse(text: str, old: Any) -> Any:
    """Read a value as the type of the one that it replaces."""
    if isinstance(old, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return type(old)(text) if isinstance(old, int | float) else text


def _run(url: str, graph: Graph, check: Hook) -> dict:
    """Queue a graph and wait for its end; returns the outputs by node."""
    identifier = _post(url, "/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})["prompt_id"]
    try:
        while True:
            history = _json(url, f"/history/{identifier}")
            if identifier in history:
                return _outputs_of(history[identifier])
            if not _is_queued(url, identifier) and identifier not in _json(url, f"/history/{identifier}"):
                raise WorkerLost(f"{url} was started again")
            check()
            time.sleep(_POLL)
    except Cancelled:
        with suppress(WorkerLost, InputError):
            _post(url, "/queue", {"delete": [identifier]})
            running = _json(url, "/queue").get("queue_running", [])
            if any(entry[1] == identifier for entry in running):
                _post(url, "/interrupt", {"prompt_id": identifier})
        raise


def _is_queued(url: str, identifier: str) -> bool:
    queue = _json(url, "/queue")
    return any(entry[1] == identifier for name in ("queue_running", "queue_pending") for entry in queue.get(name, ()))


def _outputs_of(entry: dict) -> dict:
    status = entry.get("status") or {}
    if status.get("status_str", "success") == "success":
        return entry.get("outputs", {})
    for kind, details in status.get("messages", ()):
        if kind == "execution_error":
            raise InputError(f"{details.get('node_type')}: {str(details.get('exception_message')).strip()}")
    raise InputError("It was interrupted on the server; the same command tries again.")


def _download(url: str, folder: Path, outputs: dict) -> Iterator[Path]:
    """Write every saved file of the outputs, or the temporary ones if nothing is saved."""
    entries = list(dict.fromkeys(entry for node in outputs.values() for entry in _list_files(node)))
    saved = [entry for entry in entries if entry[2] == "output"] or entries
    names: set[str] = set()
    for filename, subfolder, kind in saved:
        name = filename.lstrip(".") or "output"
        while name.casefold() in names:
            name = f"again_{name}"
        names.add(name.casefold())
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": kind})
        yield write_bytes(folder / name, _get(url, f"/view?{query}"))


def _list_files(node: dict) -> Iterator[tuple[str, str, str]]:
    """The files that a node shows, as (name, folder, "output" or "temp"): most as such, some in a list "result" of paths."""
    for key, values in node.items():
        for value in values if isinstance(values, list) else ():
            if isinstance(value, dict) and isinstance(value.get("filename"), str):
                place, kind = f"{value.get('subfolder') or ''}/{value['filename']}", value.get("type") or "output"
            elif key == "result" and isinstance(value, str) and PurePosixPath(value).suffix:
                place, kind = value, "output"
            else:
                continue
            path = PurePosixPath(place.replace("\\", "/").strip("/"))
            yield path.name, "" if path.parent == PurePosixPath(".") else str(path.parent), kind


def _upload(url: str, task: Task) -> None:
    """Send the task's picture under the name that its graph has for it."""
    assert task.item.picture is not None
    names = (str(node["inputs"].get("image")) for node in task.graph.values())
    name = next(name.removeprefix(f"{_FOLDER}/") for name in names if name.startswith(_FOLDER))
    boundary = uuid.uuid4().hex
    fields = {"subfolder": _FOLDER, "overwrite": "true", "type": "input"}
    begin = f"--{boundary}\r\nContent-Disposition: form-data; name="
    parts = [f'{begin}"{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    parts.append(f'{begin}"image"; filename="{name}"\r\n\r\n')
    body = "".join(parts).encode() + _encode_picture(task.item.picture) + f"\r\n--{boundary}--\r\n".encode()
    _get(url, "/upload/image", body, f"multipart/form-data; boundary={boundary}")


def _encode_picture(picture: Path) -> bytes:
    """Return a picture's file, or a PNG of a HEIC, which ComfyUI does not read."""
    if not is_heic(picture):
        return picture.read_bytes()
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(to_uint8(read_picture(picture))).save(png, "PNG")
    return png.getvalue()


def _post(url: str, path: str, content: dict) -> Any:
    return _decode(url, _get(url, path, json.dumps(content).encode(), "application/json") or b"{}")


def _json(url: str, path: str) -> Any:
    return _decode(url, _get(url, path))


def _decode(url: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        raise WorkerLost(f"{url} is no ComfyUI server") from error


def _get(url: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
    """The answer to a GET, or to a POST if there is a body.

    Raises:
        InputError: the server refuses. WorkerLost: it does not answer, several times.
    """
    reason = ""
    for left in reversed(range(_TRIES)):
        request = urllib.request.Request(url + path, body, {"Content-Type": kind} if body is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise InputError(f"The server refuses {path.partition('?')[0]}: {_reason(error)}") from error
            reason = str(error)
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error))
        if left:
            time.sleep(_POLL)
    raise WorkerLost(f"{url} does not answer: {reason}")


def _reason(error: urllib.error.HTTPError) -> str:
    """What ComfyUI says of a graph that it refuses."""
    try:
        answer = json.loads(error.read())
        nodes = (node for node in answer.get("node_errors", {}).values())
        details = [f"{node['class_type']}: {one['message']} ({one['details']})" for node in nodes for one in node["errors"]]
        return "; ".join(details) or answer["error"]["message"]
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return str(error)
