"""A small HTTP server that speaks what DIBS asks of a vLLM server, around a policy of its own."""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dibs.model.policy import Policy
from dibs.model.turn_end import Stops
from dibs.rollouts.sampling import SampleRequest
from dibs.rollouts.sampling.transformers import TransformersSampler
from dibs.types import Prompt
from tiny_groups import make_prompt

_LOADING = threading.Lock()
"""transformers cannot load two models at once in threads."""


class SmallServer:
    """``fail``: statuses of the next answers to requests for completions; 0 closes the connection.

    ``bodies``: of all requests for completions. ``fewer``: completions left out of each answer.
    ``stale``: new weights are confirmed and not loaded.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.temperature)
        self.version: str | None = None
        self.max_model_len = 128
        self.models = ["policy"]
        self.fail: list[int] = []
        self.fewer = 0
        self.stale = False
        self.answered = 0
        self.bodies: list[dict] = []
        self.when_asked = lambda: None
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """Answer nobody any more."""
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: dict) -> tuple[int, dict]:
        if path == "/v1/models":
            served = [{"id": name, "max_model_len": self.max_model_len} for name in self.models]
            return 200, {"data": served}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/collective_rpc" and body["method"] == "dibs_load_folder":
            folder, self.version = body["args"]
            if not self.stale:
                with _LOADING:
                    self.policy.load(Path(folder))
            return 200, {"results": [None]}
        if path == "/collective_rpc":
            return 200, {"results": [[self.version]]}
        self.when_asked()
        self.bodies.append(body)
        if self.fail:
            return self.fail.pop(0), {"error": "out of order"}
        return 200, {"choices": self.completions(body)}

    def completions(self, body: dict) -> list[dict]:
        prompt: Prompt = make_prompt("00", tuple(body["prompt"]))
        self.policy.stops = Stops(texts=tuple(body.get("stop", ())))
        sampler = TransformersSampler(self.policy, body["max_tokens"], 10**5)
        with self.lock:
            drawn = list(
                sampler.sample(
                    [SampleRequest(prompt, body["n"], (body["seed"],))], body["temperature"]
                )
            )
            self.answered += len(drawn)
        return [
            {
                "index": each.number,
                "finish_reason": "stop" if each.completion.finished else "length",
                "token_ids": list(each.completion.token_ids),
                "logprobs": {"token_logprobs": list(each.completion.sampling_logprobs)},
            }
            for each in drawn[self.fewer :]
        ]


def _handler(server: SmallServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            self.reply(json.loads(self.rfile.read(size)) if size else {})

        def reply(self, body: dict) -> None:
            status, answer = server.answer(self.path, body)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
