"""The one stand-in of the project: what `huggingface_hub` needs of a hub, on loopback, for no hub can be had in tests.

`python -m tests.transfer.hub_stand_in --log FILE` prints its address. It keeps repositories in memory: trees, files in
ranges, LFS uploads, commits that are atomic. Writing needs the token `TOKEN`; what is private, reading too.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, abort, jsonify, request

from tests.transfer.s3_server import serve

TOKEN = "hf_CANARY_9c1d"
LFS_BYTES = 1_000_000  # files from here up are large
COMMIT = "{:040x}"


@dataclass
class Repository:
    """Its commits: each a whole tree, path to contents. large: the paths that are in LFS."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"* -text\n"}])
    large: set[str] = field(default_factory=set)

    @property
    def head(self) -> str:
        return COMMIT.format(len(self.commits) - 1)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def refuse(status: int, code: str) -> Any:
    abort(Response(json.dumps({"error": code}), status, {"X-Error-Code": code}, content_type="application/json"))


def hub(asked: argparse.Namespace) -> Flask:
    app = Flask(__name__)
    repositories: dict[str, Repository] = {}  # `models/owner/name`, `datasets/owner/name`
    objects: dict[str, bytes] = {}  # large files by SHA-256, in a commit or not

    def may_write() -> bool:
        return request.headers.get("Authorization") == f"Bearer {TOKEN}"

    @app.before_request
    def guard() -> None:
        if request.method == "POST" and request.path != "/api/validate-yaml" and not may_write():
            refuse(401, "no token that may write")

    # --- reading ------------------------------------------------------------------------------------------------------

    def readable(name: str, revision: str) -> tuple[Repository, dict[str, bytes]]:
        repository = repositories.get(name)
        if repository is None or (repository.private and not may_write()):
            refuse(404, "RepoNotFound")
        known = {COMMIT.format(number): tree for number, tree in enumerate(repository.commits)}
        tree = repository.commits[-1] if revision == "main" else known.get(revision)
        return repository, tree if tree is not None else refuse(404, "RevisionNotFound")

    @app.get("/api/<kind>/<owner>/<name>/tree/<revision>")
    @app.get("/api/<kind>/<owner>/<name>/tree/<revision>/<path:below>")
    def tree(kind: str, owner: str, name: str, revision: str, below: str = "") -> Response:
        repository, files = readable(f"{kind}/{owner}/{name}", revision)
        listed: list[dict[str, Any]] = [{"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0}]
        for path, data in files.items():
            item: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if path in repository.large:
                oid = hashlib.sha256(data).hexdigest()
                item |= {"oid": "1" * 40, "lfs": {"oid": oid, "size": len(data), "pointerSize": 130}}
            listed += [item] if path.startswith(below) else []
        return jsonify(listed)

    @app.get("/api/<kind>/<owner>/<name>")
    @app.get("/api/<kind>/<owner>/<name>/revision/<revision>")
    def info(kind: str, owner: str, name: str, revision: str = "main") -> Response:
        repository, files = readable(f"{kind}/{owner}/{name}", revision)
        siblings = [{"rfilename": path} for path in files]
        return jsonify({"id": f"{owner}/{name}", "sha": repository.head, "siblings": siblings})

    @app.get("/<owner>/<name>/resolve/<revision>/<path:path>")
    @app.get("/<kind>/<owner>/<name>/resolve/<revision>/<path:path>")
    def file(owner: str, name: str, revision: str, path: str, kind: str = "models") -> Response:
        repository, files = readable(f"{kind}/{owner}/{name}", revision)
        if path not in files:
            refuse(404, "EntryNotFound")
        answer = Response(files[path], content_type="application/octet-stream")
        answer.set_etag(git_sha1(files[path]))
        answer.headers["X-Repo-Commit"] = repository.head
        if asked.redirect:
            answer.status_code, answer.headers["Location"] = 302, f"{asked.redirect}{path}"
            return answer
        return answer.make_conditional(request, accept_ranges=True, complete_length=len(files[path]))

    # --- writing ------------------------------------------------------------------------------------------------------

    @app.post("/api/validate-yaml")
    def validate() -> Response:
        return jsonify({"errors": [], "warnings": []})

    @app.post("/api/repos/create")
    def create() -> tuple[Response, int]:
        name = f"{request.json['organization']}/{request.json['name']}"
        key = f"{request.json.get('type') or 'model'}s/{name}"
        status = 409 if key in repositories else 200
        repositories.setdefault(key, Repository(request.json.get("visibility") == "private"))
        return jsonify({"url": f"{request.host_url}{name}", "id": name}), status

    @app.post("/api/<kind>/<owner>/<name>/preupload/main")
    def preupload(kind: str, owner: str, name: str) -> Response:
        there = repositories[f"{kind}/{owner}/{name}"].commits[-1]
        return jsonify(
            files=[
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LFS_BYTES else "regular",
                    "shouldIgnore": False,
                    "oid": git_sha1(there[file["path"]]) if file["path"] in there else None,
                }
                for file in request.json["files"]
            ]
        )

    @app.post("/<path:repository>.git/info/lfs/objects/batch")
    def batch(repository: str) -> Response:
        def upload(oid: str) -> dict[str, Any]:
            return {} if oid in objects else {"actions": {"upload": {"href": f"{request.host_url}lfs/{oid}"}}}

        wanted = [{**one, **upload(one["oid"])} for one in request.json["objects"]]
        return jsonify({"transfer": "basic", "objects": wanted})

    @app.put("/lfs/<oid>")
    def put(oid: str) -> Response:
        data = request.get_data()
        if hashlib.sha256(data).hexdigest() != oid:
            refuse(400, "other contents")
        objects[oid] = data
        return jsonify({})

    @app.post("/api/<kind>/<owner>/<name>/commit/main")
    def commit(kind: str, owner: str, name: str) -> Response:
        repository = repositories[f"{kind}/{owner}/{name}"]
        files = dict(repository.commits[-1])
        for operation in map(json.loads, request.get_data().splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                repository.large.discard(value["path"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = objects[value["oid"]]
                repository.large.add(value["path"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        url = f"{request.host_url}{owner}/{name}/commit/{repository.head}"
        return jsonify({"commitUrl": url, "commitOid": repository.head})

    return app


if __name__ == "__main__":
    serve(hub)
