"""A hub on the loopback interface: enough of its protocol for `huggingface_hub` to download."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Hub:
    """Folders served as repositories; what was asked for; and how to misbehave.

    Attributes:
        requests: `(method, path, Range header)` of every request.
        cut: bytes after which a download breaks off, once for every file; None for never.
    """

    def __init__(self, folders: dict[str, pathlib.Path]):
        self.folders = folders
        self.requests = []
        self.cut = None
        self.broken = set()

    def files(self, repository):
        folder = self.folders[repository]
        return sorted(p for p in folder.rglob("*") if p.is_file())

    def tag(self, file):
        return f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection for every request

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server.hub
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        if repository not in hub.folders:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        folder = hub.folders[repository]
        if api:
            return self.describe(hub, repository, folder, parts)
        file = folder.joinpath(*parts[4:])
        if not file.is_file():
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.send(hub, file)

    def describe(self, hub, repository, folder, parts):
        names = [file.relative_to(folder).as_posix() for file in hub.files(repository)]
        if "tree" in parts:
            content = [
                {
                    "type": "file",
                    "path": name,
                    "oid": "0" * 40,
                    "size": (folder / name).stat().st_size,
                }
                for name in names
            ]
        else:
            content = {
                "id": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
        return self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def send(self, hub, file):
        data = file.read_bytes()
        headers = dict(ETag=hub.tag(file), X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        if self.command == "HEAD":
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            return None
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") in (None, headers["ETag"]):
            start = int(self.headers["Range"].split("=")[1].split("-")[0])
            if start >= len(data):
                return self.answer(416)
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if hub.cut is not None and len(data) > hub.cut and file not in hub.broken:
            hub.broken.add(file)
            self.send_response(206 if start else 200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : start + hub.cut])
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, data[start:], **headers)


@contextlib.contextmanager
def serve(folders):
    """Yields a `Hub` and its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub(folders)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
