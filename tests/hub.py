"""A stand-in for the Hugging Face hub: one dataset, whose revisions are folders."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def serve_dataset(name: str, revisions: dict[str, Path], breaks: str | None = None) -> Iterator[str]:
    """Serve the files of each revision's folder, with the hub's own addresses and answers; yields the endpoint.

    `breaks`: the revision whose files break the connection when their content is asked for.
    """
    commits = {revision: hashlib.sha1(revision.encode()).hexdigest() for revision in revisions}
    folders = {key: folder for r, folder in revisions.items() for key in (r, commits[r])}

    class Hub(BaseHTTPRequestHandler):
        """What `datasets` and `huggingface_hub` ask of the hub."""

        def do_GET(self) -> None:
            """Information on a revision, a listing, or a file."""
            match unquote(urlsplit(self.path).path).removeprefix(f"/api/datasets/{name}").split("/")[1:]:
                case []:
                    self._say(about("main"))
                case ["revision", revision] if revision in folders:
                    self._say(about(revision))
                case ["tree", revision, *below] if revision in folders:
                    self._say(listing(folders[revision] / "/".join(below)))
                case [*_, "resolve", revision, file] if revision in folders and (folders[revision] / file).is_file():
                    if revision in (breaks, commits.get(breaks)) and self.command == "GET":
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    self._send((folders[revision] / file).read_bytes(), revision)
                case [*_, "resolve", revision, _] if revision in folders:
                    self._refuse("EntryNotFound", revision)
                case _:
                    self._refuse("RevisionNotFound")

        do_HEAD = do_GET

        def _say(self, answer: object) -> None:
            self._send(json.dumps(answer).encode())

        def _refuse(self, error: str, revision: str | None = None) -> None:
            self._send(b"", revision, error)

        def _send(self, content: bytes, revision: str | None = None, error: str | None = None) -> None:
            self.send_response(404 if error else 200)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", str(len(content)))
            if revision is not None:
                self.send_header("X-Repo-Commit", commits.get(revision, revision))
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    def about(revision: str) -> dict[str, object]:
        files = [{"rfilename": path.name} for path in sorted(folders[revision].iterdir())]
        return {"id": name, "sha": commits.get(revision, revision), "siblings": files, "tags": [], "private": False}

    def listing(folder: Path) -> list[dict[str, object]]:
        return [entry(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []

    def entry(path: Path) -> dict[str, object]:
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": oid}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
