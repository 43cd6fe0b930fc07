"""A model hub on this machine: as a cache folder, and as a server on the loopback address."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def sha(text: str) -> str:
    """A commit name of 40 digits."""
    return hashlib.sha1(text.encode()).hexdigest()


def fill_cache(cache: Path, repository: str, revision: str, files: dict[str, bytes]) -> Path:
    """Put files into a cache folder as huggingface_hub lays it out."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(sha(revision))
    snapshot = root / "snapshots" / sha(revision)
    for name, data in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    return snapshot


@contextmanager
def served(repository: str, revisions: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A server of one repository: its address, and the list of the files that were fetched."""
    fetched: list[str] = []
    commits = {sha(name): files for name, files in revisions.items()}

    def commit_of(revision: str) -> str | None:
        found = sha(revision) if revision in revisions else revision
        return found if found in commits else None

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            for prefix, reply in (
                (f"/api/models/{repository}/revision/", self.info),
                (f"/api/models/{repository}/tree/", self.tree),
                (f"/{repository}/resolve/", self.file),
            ):
                if path.startswith(prefix):
                    revision, _, name = path.removeprefix(prefix).partition("/")
                    commit = commit_of(revision)
                    if commit is None:
                        return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
                    return reply(commit, name, body)
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def info(self, commit: str, _name: str, body: bool) -> None:
            siblings = [{"rfilename": name} for name in commits[commit]]
            self.send(200, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode(), {}, body)

        def tree(self, commit: str, _name: str, body: bool) -> None:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": sha(name + commit)}
                for name, data in commits[commit].items()
            ]
            self.send(200, json.dumps(entries).encode(), {}, body)

        def file(self, commit: str, name: str, body: bool) -> None:
            data = commits[commit].get(name)
            if data is None:
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, body)
            if body:
                fetched.append(name)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{sha(name + commit)}"'}
            return self.send(200, data, headers, body)

        def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
