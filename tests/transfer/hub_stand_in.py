"""The one stand-in of the project: what `huggingface_hub` needs of a hub, on loopback, for no hub can be had in tests.

`python -m tests.transfer.hub_stand_in --log FILE` prints its address. It keeps model repositories in memory: trees,
files in ranges, LFS uploads, commits that are atomic. Writing needs the token `TOKEN`; what is private, reading too.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

TOKEN = "hf_CANARY_9c1d"
LFS_BYTES = 1_000_000  # files from here up are large
COMMIT = "{:040x}"


@dataclass
class Repository:
    """Its commits: each a whole tree, path to contents. large: the paths that are in LFS."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"* -text\n"}])
    large: set[str] = field(default_factory=set)

    def tree(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.commits[-1]
        known = {COMMIT.format(number): tree for number, tree in enumerate(self.commits)}
        return known.get(revision)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def key_of(match: re.Match[str]) -> str:
    """`owner/name` of a model, `datasets/owner/name` of a data set."""
    return f"datasets/{match.group(2)}" if (match.group(1) or "").startswith("datasets") else match.group(2)


class Hub(BaseHTTPRequestHandler):
    """One request. Repositories and large files are shared by all."""

    protocol_version = "HTTP/1.1"
    repositories: ClassVar[dict[str, Repository]] = {}
    objects: ClassVar[dict[str, bytes]] = {}  # large files by SHA-256, in a commit or not
    log: ClassVar[str] = ""
    seconds: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        self._note()
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            self._tree(key_of(match), match.group(3), match.group(4))
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(key_of(match), match.group(3) or "main")
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(key_of(match), match.group(3), match.group(4))
        else:
            self._answer(404, {"error": "no such page"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "no token that may write"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/[^/]+", path):
            self._preupload(key_of(match), json.loads(body))
        elif match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main", path):
            self._commit(key_of(match), [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": "no such page"})

    def do_PUT(self) -> None:
        self._note()
        oid = self.path.removeprefix("/lfs/")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.seconds)
        if hashlib.sha256(data).hexdigest() != oid:
            self._answer(400, {"error": "other contents"})
            return
        self.objects[oid] = data
        self._answer(200, {})

    # --- reading ----------------------------------------------------------------------------------------------------

    def _readable(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The tree; None, and answered, if there is none or it is not for whoever asks."""
        repository = self.repositories.get(name)
        hidden = repository and repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repository is None or hidden:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        tree = repository.tree(revision)
        if tree is None:
            self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        return tree

    def _tree(self, name: str, revision: str, below: str) -> None:
        if (tree := self._readable(name, revision)) is None:
            return
        large = self.repositories[name].large
        listed: list[dict[str, Any]] = [{"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0}]
        for path, data in tree.items():
            if not path.startswith(below):
                continue
            item: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if path in large:
                oid = hashlib.sha256(data).hexdigest()
                item |= {"oid": "1" * 40, "lfs": {"oid": oid, "size": len(data), "pointerSize": 130}}
            listed.append(item)
        self._answer(200, listed)

    def _info(self, name: str, revision: str) -> None:
        if (tree := self._readable(name, revision)) is not None:
            sha = COMMIT.format(len(self.repositories[name].commits) - 1)
            siblings = [{"rfilename": path} for path in tree]
            self._answer(200, {"id": name.removeprefix("datasets/"), "sha": sha, "siblings": siblings})

    def _file(self, name: str, revision: str, path: str) -> None:
        if (tree := self._readable(name, revision)) is None:
            return
        if path not in tree:
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        data, status, headers = tree[path], 200, {"ETag": f'"{git_sha1(tree[path])}"', "Accept-Ranges": "bytes"}
        headers["X-Repo-Commit"] = COMMIT.format(len(self.repositories[name].commits) - 1)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match.group(1)), int(match.group(2) or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            data, status = data[start:stop], 206
        time.sleep(self.seconds)
        self._send(status, data, headers)

    # --- writing ----------------------------------------------------------------------------------------------------

    def _create(self, asked: dict[str, Any]) -> None:
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        name = f"{kind}{asked['organization']}/{asked['name']}"
        there = name in self.repositories
        self.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
        self._answer(409 if there else 200, {"url": f"http://{self.headers['Host']}/{name}", "id": name})

    def _preupload(self, name: str, asked: dict[str, Any]) -> None:
        tree = self.repositories[name].commits[-1]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_BYTES else "regular",
                "shouldIgnore": False,
                "oid": git_sha1(tree[file["path"]]) if file["path"] in tree else None,
            }
            for file in asked["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        wanted: list[dict[str, Any]] = []
        for one in asked["objects"]:
            upload = {"upload": {"href": f"http://{self.headers['Host']}/lfs/{one['oid']}"}}
            wanted.append({**one, **({} if one["oid"] in self.objects else {"actions": upload})})
        self._answer(200, {"transfer": "basic", "objects": wanted})

    def _commit(self, name: str, operations: list[dict[str, Any]]) -> None:
        repository = self.repositories[name]
        tree = dict(repository.commits[-1])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
                repository.large.discard(value["path"])
            elif operation["key"] == "lfsFile":
                tree[value["path"]] = self.objects[value["oid"]]
                repository.large.add(value["path"])
            elif operation["key"] == "deletedFile":
                del tree[value["path"]]
        repository.commits.append(tree)
        oid = COMMIT.format(len(repository.commits) - 1)
        self._answer(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{oid}", "commitOid": oid})

    # --- answering --------------------------------------------------------------------------------------------------

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _note(self) -> None:
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"REQUEST_METHOD": self.command, "PATH_INFO": self.path}) + "\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Clients are killed on purpose: that is nothing to tell."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", default="")
    parser.add_argument("--seconds", type=float, default=0.0, help="that each file waits")
    asked = parser.parse_args()
    Hub.log, Hub.seconds = asked.log, asked.seconds
    server = Server(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
