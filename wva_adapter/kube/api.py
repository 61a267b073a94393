"""How to talk to a Kubernetes API server: credentials, one request, and what a refusal says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from wva_adapter.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

_MOST_OF_A_REFUSAL = 64 * 1024


class _Status(msgspec.Struct):
    message: str = ""


class Refused(ClusterError):
    """The API server answered, and not with what was asked for.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: HTTP {status}" + (f": {message}" if message else ""))
        self.status = status


class KubernetesApi:
    """A connection to an API server, with the credentials of a kubeconfig or of the pod.

    Bodies are raw bytes: the client library's models would cost a hundred times as much.

    Args:
        kubeconfig: The file; ``None`` means the pod's own service account.
        user_agent: Who the API server's audit log says is asking.
    """

    def __init__(self, kubeconfig: Path | None, *, user_agent: str = "wva-adapter") -> None:
        self._kubeconfig = kubeconfig
        self._user_agent = user_agent
        self._client: ApiClient | None = None
        # Others' requests may be on their way when credentials are read anew: who is the last to
        # use the former client closes it.
        self._requests: Counter[ApiClient] = Counter()
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Read the credentials.

        Raises:
            ConfigError: There are none, or they cannot be used.
        """
        await self._connected()

    async def _connected(self) -> ApiClient:
        async with self._connecting:
            if self._client is None:
                self._client = await _load_client(self._kubeconfig)
                self._client.user_agent = self._user_agent
            return self._client

    async def bearer_token(self) -> str | None:
        """Return the token of this moment; ``None`` where the credentials are of another kind.

        Raises:
            ConfigError: There are no credentials, or they cannot be used.
        """
        client = await self._connected()
        header: str | None = await client.configuration.get_api_key_with_prefix("BearerToken")
        return None if header is None else header.removeprefix("Bearer ")

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()  # type: ignore[no-untyped-call]

    @asynccontextmanager
    async def get(
        self, path: str, query: Mapping[str, str | int], *, timeout_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open the response to a GET, its body still unread.

        Args:
            timeout_s: For the whole of it, the reading included.

        Raises:
            Refused: The answer is not 200.
            ClusterError: There was no answer, or it broke off while it was read.
        """
        async with self._request("GET", path, query, None, None, timeout_s) as response:
            yield response

    async def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        timeout_s: float = 10.0,
    ) -> dict[str, Any]:
        """Return the object that the API server answers a write with.

        Raises:
            Refused: The answer is not 200, 201 or 202.
            ClusterError: There was no answer.
        """
        async with self._request(method, path, {}, body, content_type, timeout_s) as response:
            answer: dict[str, Any] = msgspec.json.decode(await response.read())
            return answer

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Mapping[str, Any] | None,
        content_type: str | None,
        timeout_s: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{method} {path}"
        client = await self._connected()
        self._requests[client] += 1
        headers = {"Accept": "application/json"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        response: aiohttp.ClientResponse | None = None
        try:
            request = await client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 10))
            answer = await client.call_api(*request, _request_timeout=timeout)
            response = answer.response
            assert response is not None
            if response.status not in (200, 201, 202):
                raise await self._refusal(client, response, what)
            yield response
        except TimeoutError:
            raise ClusterError(f"{what}: timed out after {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ClusterError(f"{what}: {error}") from error
        finally:
            if response is not None:
                # What was not read to its end cannot be used for another request.
                response.close()
            self._requests[client] -= 1
            if not self._requests[client]:
                del self._requests[client]
                if self._client is not client:
                    await client.close()  # type: ignore[no-untyped-call]

    async def _refusal(
        self, client: ApiClient, response: aiohttp.ClientResponse, what: str
    ) -> Refused:
        if response.status == 401 and self._client is client:
            # A token or certificate that was replaced on disk: read it anew the next time.
            self._client = None
        try:
            message = msgspec.json.decode(
                await response.content.read(_MOST_OF_A_REFUSAL), type=_Status
            ).message
        except (msgspec.DecodeError, aiohttp.ClientError):
            message = ""
        return Refused(what, response.status, message)


async def _load_client(kubeconfig: Path | None) -> ApiClient:
    # Imported here, where an adapter on a static file never comes, and beside the event loop: it
    # takes a second, in which requests are answered already.
    config = await asyncio.to_thread(import_module, "kubernetes.aio.config")
    client = await asyncio.to_thread(import_module, "kubernetes.aio.client")
    configuration = client.Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            # The library takes a missing file for an empty one.
            await asyncio.to_thread(kubeconfig.stat)
            await config.load_kube_config(
                config_file=str(kubeconfig), client_configuration=configuration
            )
        loaded: ApiClient = client.ApiClient(configuration)
    except config.ConfigException as error:
        where = "cluster: no kubeconfig is given" if kubeconfig is None else str(kubeconfig)
        raise ConfigError(f"{where}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{kubeconfig}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{kubeconfig}: not a kubeconfig that can be used: {error}") from error
    return loaded
