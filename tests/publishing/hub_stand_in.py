"""A local stand-in of the Hugging Face hub: the part of its API that a small repository takes."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standInsOwnToken0123456789"


class Hub:
    """Holds repositories in memory; wants `TOKEN` to write, and keeps what was asked for.

    Large files go by LFS as there: announced, put, and named in the commit by their hash.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self._body()
                path = unquote(urlsplit(self.path).path)
                hub.asked.append(f"{self.command} {path}")
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                status, headers, answer = hub.answer(self.command, path, body, allowed)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", headers.get("X-Size", str(len(answer))))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_POST = do_PUT = do_HEAD = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(
        self, method: str, path: str, body: bytes, allowed: bool
    ) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        if method in ("GET", "HEAD") and len(parts) >= 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        if method == "PUT" and parts[0] == "lfs-object":
            self.objects[parts[1]] = body
            return 200, {}, b""
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if not allowed and method == "POST":
            return 401, {"X-Error-Message": "Invalid credentials"}, b'{"error": "Invalid"}'
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.repositories:
                return 409, {}, json.dumps({"url": f"{self.url}/{name}"}).encode()
            self.repositories[name], self.private[name] = {}, bool(asked.get("private"))
            return _json({"url": f"{self.url}/{name}", "name": name, "id": name})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs-object/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return _json({"transfer": "basic", "objects": objects})
        name = "/".join(parts[2:4])
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        if "preupload" in parts:
            files = [
                {"path": one["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            return _json({"files": files})
        if "commit" in parts:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.repositories[name][value["path"]] = self.objects[value["oid"]]
            return _json({"success": True, "commitUrl": f"{self.url}/{name}/commit/{'a' * 40}",
                          "commitOid": "a" * 40})  # fmt: skip
        return _json({"id": name, "sha": "a" * 40, "siblings": [], "private": False, "tags": []})

    def _file(self, name: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        content = self.repositories[name].get(path)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40}, b""
        about = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "a" * 40}
        return 200, {**about, "X-Size": str(len(content))}, content


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
