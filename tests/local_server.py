"""A local endpoint in the form of OpenAI's, which answers as its script says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Answers each request as the next line of its script says; the last line stays.

    A line is the content of a reply, a status code with headers, or a function of the handler.
    """

    def __init__(self, *script: Any) -> None:
        self.script: list[Any] = list(script)
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                outer.seen.append(json.loads(self.rfile.read(size)))
                outer.headers.append({name.title(): said for name, said in self.headers.items()})
                outer.paths.append(self.path)
                said = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if callable(said):
                    said(self)
                elif isinstance(said, tuple):
                    self.reply(b"busy", *said)
                else:
                    self.say(said)

            def say(self, content: Any) -> None:
                usage = {"prompt_tokens": 100, "completion_tokens": 7}
                message = {"role": "assistant", "content": content}
                body = {"choices": [{"message": message}], "usage": usage}
                self.reply(json.dumps(body).encode(), 200, {})

            def reply(self, body: bytes, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
