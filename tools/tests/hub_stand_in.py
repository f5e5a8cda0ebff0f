"""A model hub on 127.0.0.1: enough of the Hugging Face hub's HTTP interface for a snapshot."""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MISSING = (404, "RepoNotFound")
MISSING_OR_PRIVATE = (401, None)  # what the real hub says of a missing repository without a token
GATED = (401, "GatedRepo")
GATED_FOR_THIS_TOKEN = (403, "GatedRepo")
FORBIDDEN = (403, None)
BROKEN = (500, None)


@dataclass
class Repository:
    """A served folder. `refusal` is (status, X-Error-Code) instead of an answer, or None."""

    folder: Path | None
    refusal: tuple[int, str | None] | None = None
    refuses_files_only: bool = False  # the real hub lists a gated repository, and keeps its files


class HubStandIn:
    """The server, its repositories and the faults it can play; a context manager."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []  # "GET /path"
        self.cut: tuple[str, int] | None = None  # (file, bytes): no more of this file is sent
        self.drops_connection = True  # at the cut; else the answer ends as if it were complete
        self.silent = threading.Event()  # takes connections and never answers
        self._closed = threading.Event()

    def serve(self, name: str, folder: Path | None = None, **faults) -> str:
        self.repositories[name] = Repository(folder, **faults)
        return name

    def downloads(self) -> set[str]:
        """The names of the files that were asked for since the last `requests.clear()`."""
        paths = [r.removeprefix("GET ") for r in self.requests if r.startswith("GET ")]
        return {p.rpartition("/")[2] for p in paths if "/resolve/" in p}

    def __enter__(self) -> "HubStandIn":
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def go_away(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.server.shutdown()
            self.server.server_close()

    def __exit__(self, *_) -> None:
        self.go_away()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.silent.is_set():
            self.hub._closed.wait()
            return
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if parts[:2] == ["api", "models"] and len(parts) == 6:
                self._answer_about("/".join(parts[2:4]), kind=parts[4], revision=parts[5])
            elif len(parts) >= 5 and parts[2] == "resolve":
                self._answer_about("/".join(parts[:2]), "file", parts[3], "/".join(parts[4:]))
            else:
                self._refuse(404, None)

    def _answer_about(self, name: str, kind: str, revision: str, file: str = ""):
        repository = self.hub.repositories.get(name, Repository(None, MISSING))
        if repository.refusal and (kind == "file" or not repository.refuses_files_only):
            self._refuse(*repository.refusal)
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif kind == "revision":
            files = [{"rfilename": path.name} for path in repository.folder.iterdir()]
            self._send_json({"id": name, "sha": COMMIT, "siblings": files})
        elif kind == "tree":
            self._send_json([_described(path) for path in sorted(repository.folder.iterdir())])
        else:
            self._send_file(repository.folder / file)

    def _refuse(self, status: int, code: str | None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, path: Path):
        body = path.read_bytes()
        total = len(body)
        asked = self.headers.get("Range", "")  # "bytes=START-"
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        cut_here = self.command == "GET" and self.hub.cut and self.hub.cut[0] == path.name
        end = self.hub.cut[1] if cut_here else total
        announced = total if self.hub.drops_connection else end
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(announced - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{announced - 1}/{announced}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start:end])
            self.close_connection = self.close_connection or end < announced


def _described(path: Path) -> dict:
    body = path.read_bytes()
    oid = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
    return {"type": "file", "path": path.name, "size": len(body), "oid": oid}
