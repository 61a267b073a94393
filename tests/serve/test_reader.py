"""The second port only reads, for whoever has its token."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.serve.fixture import an_app
from wva_adapter.errors import ConfigError
from wva_adapter.serve.envelope import Envelope
from wva_adapter.serve.reader import ReaderDoor, TokenFile

pytestmark = pytest.mark.anyio


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def status(
    path: str, *, token: TokenFile | None = None, said: str | None = None, method: str = "GET"
) -> int:
    headers = {} if said is None else {"Authorization": said}
    transport = httpx.ASGITransport(app=Envelope(ReaderDoor(an_app(), token)))
    async with httpx.AsyncClient(transport=transport, base_url="https://adapter") as client:
        return (await client.request(method, path, headers=headers)).status_code


@pytest.mark.parametrize("path", ["/v1/desired/chat/llama", "/metrics", "/healthz", "/readyz"])
async def test_an_open_port_answers_what_is_only_read(path: str) -> None:
    assert await status(path) == 200
    assert await status(path, method="POST") == 405


async def test_a_query_may_come_as_a_form() -> None:
    # No such route in this application, so 404 is how far it gets, and 405 how far others do.
    assert await status("/api/v1/query") == 404
    assert await status("/api/v1/query", method="POST") == 404
    assert await status("/api/v1/query", method="PUT") == 405


@pytest.mark.parametrize(
    "path",
    [
        "/apis",
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/m1",
        "/explain",
        "/explain/chat/llama",
        "/openapi.json",
        "/readyz/ping",
        "/metrics/",
        "//metrics",
        "/",
    ],
)
async def test_nothing_else_is_there(path: str) -> None:
    assert await status(path) == 404


async def test_the_token_of_the_file_opens_it_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    token = TokenFile(file)
    path = "/v1/desired/chat/llama"
    assert await status(path, token=token, said="Bearer s3cret") == 200
    for wrong in (
        None,
        "Bearer",
        "Bearer s3cre",
        "Bearer s3cret1",
        "Bearer S3CRET",
        "Basic s3cret",
    ):
        assert await status(path, token=token, said=wrong) == 401
    assert await status(f"{path}?token=s3cret&access_token=s3cret", token=token) == 401
    assert await status("/no-such-path", token=token) == 401
    assert await status("/healthz", token=token) == 200


async def test_a_new_token_counts_once_it_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "token", Clock()
    file.write_text("one")
    token = TokenFile(file, clock=clock)
    file.write_text("two")
    clock.now_s += 2
    assert token.matches(b"two")
    assert not token.matches(b"one")
    file.write_text("")
    clock.now_s += 2
    assert token.matches(b"two")
    assert "found 0 words, want one token" in str(vars(caplog.records[-1]))
    file.unlink()
    clock.now_s += 2
    assert token.matches(b"two")


def test_a_token_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token file .*: No such file"):
        TokenFile(tmp_path / "token")
    (tmp_path / "token").write_text("two words")
    with pytest.raises(ConfigError, match="found 2 words, want one token"):
        TokenFile(tmp_path / "token")
