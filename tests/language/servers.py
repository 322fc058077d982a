"""Real servers of language models, each a process on the loopback; and one that errs as it is told to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START_SECONDS = 180
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def llama_cpp_server(gguf: Path, log: Path, context_size: int = 512) -> Iterator[str]:
    """Address of llama.cpp's server: it tells log-probabilities and keeps to JSON schemas."""
    port = free_port()
    command = [sys.executable, "-m", "tests.language.llama_cpp_server", str(gguf), str(port), str(context_size)]
    with _process(command, log, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def transformers_server(folder: Path, log: Path) -> Iterator[str]:
    """Address of ``transformers serve``: it overlooks that log-probabilities or a JSON schema are asked for."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu"]
    with _process(command, log, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(command: list[str], log: Path, health: str) -> Iterator[None]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=REPOSITORY)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_up(health):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def _is_up(health: str) -> bool:
    try:
        with urllib.request.urlopen(health, timeout=5) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError):
        return False


class ErringServer:
    """Replies ``reply to <last message>``, but first fails as often as it is told to; it notes all that it sees.

    Attributes:
        url: Its address.
        bodies: Requests, in the order in which they came.
        keys: Authorization of each.
        most_at_once: Most requests that were under way at a time.
    """

    def __init__(self, failures: list[int] | None = None, seconds: float = 0.0, **choice: Any) -> None:
        """Begin to listen.

        Args:
            failures: Status of the first replies.
            seconds: How long each reply takes that is no failure.
            choice: What is different in a reply's one choice.
        """
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._num_at_once = 0
        self._failures, self._seconds, self._choice = list(failures or []), seconds, choice
        self._lock = threading.Lock()
        erring = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, reply = erring.answer(body, self.headers.get("Authorization"))
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any], key: str | None) -> tuple[int, Mapping[str, Any]]:
        """Status and content of the reply to a request."""
        with self._lock:
            self.bodies.append(body)
            self.keys.append(key)
            self._num_at_once += 1
            self.most_at_once = max(self.most_at_once, self._num_at_once)
            failure = self._failures.pop(0) if self._failures else None
        time.sleep(0 if failure is not None else self._seconds)
        with self._lock:
            self._num_at_once -= 1
        if failure is not None:
            return failure, {"error": {"message": f"failure {failure}", "type": "x", "code": failure}}
        message = {"role": "assistant", "content": f"reply to {body['messages'][-1]['content']}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message, **self._choice}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        facts = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return 200, {**facts, "choices": [choice], "usage": usage}

    @property
    def asked(self) -> list[str]:
        """Last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def __enter__(self) -> ErringServer:
        """The server itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
