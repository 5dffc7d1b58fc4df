"""A minimal Hugging Face hub on the loopback interface, which serves a folder of files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class _Hub(BaseHTTPRequestHandler):
    folder: Path
    name: str
    kind: str

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api, files = f"/api/{self.kind}s/{self.name}", f"{'/datasets' if self.kind == 'dataset' else ''}/{self.name}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": path.name} for path in self.folder.iterdir()]
            self.answer({"_id": "1", "id": self.name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        elif path == f"{api}/tree/{COMMIT}":
            self.answer(
                [{"type": "file", "oid": "2" * 40, "size": f.stat().st_size, "path": f.name} for f in self.folder.iterdir()]
            )
        elif path.startswith(files) and (self.folder / path.rpartition("/")[2]).is_file():
            content = (self.folder / path.rpartition("/")[2]).read_bytes()
            self.send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content).hexdigest()}"'})
        else:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, name: str, *, kind: str = "dataset") -> Iterator[str]:
    """Serve a folder's files as the data set or model of a name for the duration; return the hub's address."""
    handler = type("Hub", (_Hub,), {"folder": folder, "name": name, "kind": kind})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
