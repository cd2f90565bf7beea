"""A client of one vLLM server, over HTTP: what it serves, completions, new weights."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2

from dibs.types import InputError

WAITS = (0.25, 0.5, 1.0, 2.0)
"""Seconds before each further attempt at a request."""
_CONNECT_TIMEOUT = 5.0
_KEEP_ALIVE = 2.0
"""Seconds an idle connection is kept: fewer than uvicorn's 5, so that no request meets a closed one."""
_SETUP = "start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls dibs.WeightLoader"


class FaultyServerError(Exception):
    """A server cannot be used now; the message is the reason."""


class _TransientError(Exception):
    """A request failed, and another attempt may succeed."""


class Server:
    """A server at an address.

    ``model``: the name under which it serves the policy, known after :meth:`check`. ``fault``: why the
    server is not used; None while it is used. ``version``: version of the weights that it must hold.
    """

    def __init__(self, address: str, model: str | None, timeout: float) -> None:
        self.address = address
        self.model = model
        self.max_model_len: int | None = None
        self.fault: str | None = None
        self.version: str | None = None
        self._timeout = timeout
        self._client = httpx2.AsyncClient(
            base_url=address,
            timeout=httpx2.Timeout(timeout, connect=_CONNECT_TIMEOUT, pool=None),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE),
            trust_env=False,  # no proxy between a trainer and its servers
        )

    async def check(self) -> None:
        """Find the model and the length of its context. Raises FaultyServerError where that fails."""
        response = await self._send("GET", "/v1/models")
        try:
            served = {model["id"]: model.get("max_model_len") for model in response.json()["data"]}
        except (ValueError, KeyError, TypeError):
            raise FaultyServerError(
                f"/v1/models answers {_short(response)}; is it a vLLM server?"
            ) from None
        if self.model is None and len(served) == 1:
            (self.model,) = served
        if self.model not in served:
            wanted = "no model is named" if self.model is None else f"{self.model} is not served"
            raise FaultyServerError(
                f"{wanted}; set sampling.server_model to one of: {', '.join(served)}"
            )
        self.max_model_len = served[self.model]

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to a request for completions.

        Raises FaultyServerError when every attempt fails, and InputError for a request that no server
        would accept.
        """
        response = await self._send(
            "POST", "/v1/completions", {"model": self.model, **body}, WAITS, verify=True
        )
        if response.status_code == httpx2.codes.BAD_REQUEST:
            raise InputError(f"{self.address} refuses a request: {_short(response)}")
        if response.is_error:
            raise FaultyServerError(_short(response))
        answer: dict[str, Any] = response.json()
        return answer

    async def verify(self) -> None:
        """Raise FaultyServerError where the server does not hold the weights that it was last sent."""
        try:
            await self._verify()
        except _TransientError as error:
            raise FaultyServerError(str(error)) from None

    async def load(self, folder: str, version: str) -> None:
        """Load weights and clear the prefix cache. Raises FaultyServerError where that fails."""
        self.version = None
        body = {"method": "dibs_load_folder", "args": [folder, version]}
        response = await self._send("POST", "/collective_rpc", body, WAITS)
        if response.is_error:
            raise FaultyServerError(f"cannot load new weights ({_short(response)}); {_SETUP}")
        for wait in (*WAITS, None):
            response = await self._send("POST", "/reset_prefix_cache", waits=WAITS)
            if response.is_error:
                raise FaultyServerError(f"/reset_prefix_cache answers {_short(response)}")
            if not response.content or response.json().get("success"):
                break
            if wait is None:
                raise FaultyServerError("cannot reset its prefix cache: requests are still running")
            await asyncio.sleep(wait)
        self.version = version
        await self.verify()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _verify(self) -> None:
        if self.version is None:
            return
        response = await self._once("POST", "/collective_rpc", {"method": "dibs_weights"})
        if response.is_error:
            raise FaultyServerError(f"does not report its weights ({_short(response)})")
        if any(held != [self.version] for held in response.json()["results"]):
            raise FaultyServerError(
                "holds other weights than it was sent; it was restarted, or another run uses it"
            )

    async def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        waits: tuple[float, ...] = (),
        verify: bool = False,
    ) -> httpx2.Response:
        """A response; failed attempts are repeated after each of ``waits``, in seconds.

        ``verify``: check the server's weights before each further attempt.
        """
        reason = ""
        for wait in (0.0, *waits):
            if wait:
                await asyncio.sleep(wait)
                if verify and self.fault is not None:  # found out by another request
                    raise FaultyServerError(self.fault)
            try:
                if wait and verify:
                    await self._verify()
                return await self._once(method, path, body)
            except _TransientError as error:
                reason = str(error)
        raise FaultyServerError(reason)

    async def _once(self, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        try:
            response = await self._client.request(method, path, json=body)
        except httpx2.ReadTimeout:
            raise FaultyServerError(
                f"no answer within {self._timeout:g} s (sampling.server_timeout)"
            ) from None
        except httpx2.TransportError as error:
            raise _TransientError(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        if response.is_server_error or response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            raise _TransientError(_short(response))
        return response


def _short(response: httpx2.Response) -> str:
    text = " ".join(response.text.split())[:200]
    return f"HTTP {response.status_code} {text}".rstrip()
