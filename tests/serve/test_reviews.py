"""Answers of the cluster are asked for once, remembered shortly, and never mixed up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serve.cluster import ReviewingApi, an_api
from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.serve.authentication import Authenticator
from wva_adapter.serve.authorization import Authorizer
from wva_adapter.serve.identity import User
from wva_adapter.serve.reviews import (
    Access,
    AccessSpec,
    ClusterReviews,
    MembersOnly,
    PathAccess,
    Remembered,
    ResourceAccess,
)
from wva_adapter.serve.trust import Trust

pytestmark = pytest.mark.anyio

LIST = ResourceAccess("list", "external.metrics.k8s.io", "v1beta1", "m1", "default")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Counted:
    """Reviews that count how often they are asked; nobody's token unless it begins with good."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.specs: list[AccessSpec] = []
        self.fails = False
        self.allowed = True
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def review_token(self, token: str) -> User | None:
        self.tokens.append(token)
        await self.go_on.wait()
        if self.fails:
            raise ClusterError("POST tokenreviews: timed out")
        return User(token) if token.startswith("good") else None

    async def review_access(self, spec: AccessSpec) -> Access:
        self.specs.append(spec)
        await self.go_on.wait()
        if self.fails:
            raise ClusterError("POST subjectaccessreviews: timed out")
        return Access(self.allowed)


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + token.encode())]


@pytest.mark.parametrize("token", ["good", "bad"])
async def test_a_token_is_asked_for_again_after_ten_seconds(token: str) -> None:
    clock, reviews = Clock(), Counted()
    authenticator = Authenticator(reviews, Trust(), clock=clock)
    for at_s, asked in ((0, 1), (9.9, 1), (10, 2)):
        clock.now_s = at_s
        await authenticator.authenticate(None, bearer(token))
        assert len(reviews.tokens) == asked


@pytest.mark.parametrize(("allowed", "lives_s"), [(True, 20), (False, 5)])
async def test_a_yes_and_a_no_hold_as_long_as_each_is_set_to(allowed: bool, lives_s: int) -> None:
    clock, reviews = Clock(), Counted()
    reviews.allowed = allowed
    authorizer = Authorizer(reviews, allowed_cache_s=20, denied_cache_s=5, clock=clock)
    for at_s, asked in ((0, 1), (lives_s - 0.1, 1), (lives_s, 2)):
        clock.now_s = at_s
        assert (await authorizer.refusal(User("u"), LIST) is None) == allowed
        assert len(reviews.specs) == asked


async def test_what_failed_is_asked_for_anew_at_once() -> None:
    reviews = Counted()
    authenticator, authorizer = Authenticator(reviews, Trust()), Authorizer(reviews)
    reviews.fails = True
    assert await authenticator.authenticate(None, bearer("good")) is None
    refusal = await authorizer.refusal(User("u"), LIST)
    assert refusal is not None
    assert refusal.code == 500
    reviews.fails = False
    assert await authenticator.authenticate(None, bearer("good")) is not None
    assert await authorizer.refusal(User("u"), LIST) is None


async def test_callers_at_one_time_share_one_review() -> None:
    reviews = Counted()
    authenticator, authorizer = Authenticator(reviews, Trust()), Authorizer(reviews)
    reviews.go_on.clear()
    asking = [
        asyncio.create_task(authenticator.authenticate(None, bearer("good"))) for _ in range(50)
    ]
    asking += [asyncio.create_task(authorizer.refusal(User("u"), LIST)) for _ in range(50)]  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    asking[0].cancel()  # the one who asked first goes away
    await asyncio.sleep(0)
    reviews.go_on.set()
    answers = await asyncio.gather(*asking[1:])
    assert answers == [User("good", ("system:authenticated",))] * 49 + [None] * 50
    assert (len(reviews.tokens), len(reviews.specs)) == (1, 1)


async def test_a_failure_is_told_to_all_who_share_it_and_to_nobody_else() -> None:
    reviews = Counted()
    reviews.fails = True
    reviews.go_on.clear()
    authorizer = Authorizer(reviews)
    asking = [asyncio.create_task(authorizer.refusal(User("u"), LIST)) for _ in range(3)]
    await asyncio.sleep(0.01)
    reviews.go_on.set()
    refusals = await asyncio.gather(*asking)
    assert [refusal.code for refusal in refusals if refusal] == [500] * 3
    reviews.fails = False
    assert await authorizer.refusal(User("u"), LIST) is None


async def test_tokens_with_a_common_beginning_are_two() -> None:
    reviews = Counted()
    authenticator = Authenticator(reviews, Trust())
    common = "good" + "a" * 500
    for end in ("1", "2"):
        user = await authenticator.authenticate(None, bearer(common + end))
        assert user is not None
        assert user.name == common + end


@pytest.mark.parametrize(
    "other",
    [
        AccessSpec(User("v"), LIST),
        AccessSpec(User("u", ("g",)), LIST),
        AccessSpec(User("u", extra=(("a", ("b",)),)), LIST),
        AccessSpec(User("u", uid="1"), LIST),
        AccessSpec(
            User("u"),
            ResourceAccess("get", "external.metrics.k8s.io", "v1beta1", "m1", "default"),
        ),
        AccessSpec(User("u"), ResourceAccess("list", LIST.group, LIST.version, "m2", "default")),
        AccessSpec(User("u"), ResourceAccess("list", LIST.group, LIST.version, "m1", "other")),
        AccessSpec(User("u"), PathAccess("list", "m1")),
    ],
    ids=str,
)
async def test_an_answer_is_for_exactly_what_was_asked(other: AccessSpec) -> None:
    reviews = Counted()
    authorizer = Authorizer(reviews)
    await authorizer.refusal(User("u"), LIST)
    reviews.allowed = False
    assert await authorizer.refusal(other.user, other.attributes) is not None


async def test_groups_and_claims_are_not_run_together() -> None:
    reviews = Counted()
    authorizer = Authorizer(reviews)
    await authorizer.refusal(User("u", ("a", "b")), LIST)
    await authorizer.refusal(User("u", ("a,b",)), LIST)
    await authorizer.refusal(User("u", ("ab",)), LIST)
    assert len(reviews.specs) == 3


async def test_an_oversized_question_is_answered_and_not_remembered() -> None:
    reviews = Counted()
    authorizer = Authorizer(reviews)
    for _ in range(2):
        await authorizer.refusal(User("u"), PathAccess("get", "/" + "a" * 10_000))
    assert len(reviews.specs) == 2


async def test_what_is_remembered_is_bounded_in_number_and_in_bytes() -> None:
    async def answer() -> int:
        return 1

    few: Remembered[int, int] = Remembered(lambda _: 10, most=3)
    for key in range(5):
        await few.ask(key, answer)
        few.get(2)  # used again and again, it stays
    assert [key for key in range(5) if few.get(key)] == [2, 3, 4]

    small: Remembered[bytes, int] = Remembered(lambda _: 10, size=len)
    for number in range(100):
        await small.ask(number.to_bytes(2, "big") * 2**18, answer)
    assert len(small) == 16  # 8 MiB of 512 KiB each


async def test_a_life_of_zero_remembers_nothing() -> None:
    reviews = Counted()
    authorizer = Authorizer(reviews, allowed_cache_s=0)
    for _ in range(2):
        await authorizer.refusal(User("u"), LIST)
    assert len(reviews.specs) == 2


async def test_paths_that_need_no_permission_are_exact_unless_they_end_in_a_star() -> None:
    reviews = Counted()
    reviews.allowed = False
    authorizer = Authorizer(reviews, always_allowed=("/healthz", "/public/*"))
    for path, allowed in (
        ("/healthz", True),
        ("/healthz/", False),
        ("/healthz/../metrics", False),
        ("/public/a", True),
        ("/public", False),
    ):
        refusal = await authorizer.refusal(User("u"), PathAccess("get", path))
        assert (refusal is None) == allowed, path


async def test_a_user_is_quoted_and_sanitised_in_its_refusal() -> None:
    reviews = Counted()
    reviews.allowed = False
    refusal = await Authorizer(reviews).refusal(User('<b>"x"&'), PathAccess("get", "/metrics"))
    assert refusal is not None
    assert refusal.message == ('forbidden: User "&lt;b&gt;\\"x\\"&amp;" cannot get path "/metrics"')


async def test_a_name_in_the_request_is_in_the_refusal() -> None:
    reviews = Counted()
    reviews.allowed = False
    wanted = ResourceAccess("get", LIST.group, LIST.version, "m1", "", "x", "status")
    refusal = await Authorizer(reviews).refusal(User("bob"), wanted)
    assert refusal is not None
    assert refusal.message == (
        'm1.external.metrics.k8s.io "x" is forbidden: User "bob" cannot get resource "m1/status" '
        'in API group "external.metrics.k8s.io" at the cluster scope'
    )
    assert refusal.details == {"name": "x", "group": LIST.group, "kind": "m1"}


async def test_without_a_cluster_whoever_is_known_may_do_everything() -> None:
    members = MembersOnly()
    assert await members.review_token("good") is None
    for user, allowed in ((User("u", ("system:authenticated",)), True), (User("u"), False)):
        assert await members.review_access(AccessSpec(user, LIST)) == Access(allowed)


@pytest.fixture
async def api() -> AsyncIterator[ReviewingApi]:
    async with an_api() as api:
        yield api


@pytest.fixture
async def reviews(api: ReviewingApi, tmp_path: Path) -> AsyncIterator[ClusterReviews]:
    connection = KubernetesApi(api.write_kubeconfig(tmp_path / "kubeconfig"))
    yield ClusterReviews(connection)
    await connection.close()


async def test_the_api_server_says_whose_token_it_is(reviews: ClusterReviews) -> None:
    assert await reviews.review_token("good-carol") == User("carol", ("readers",), uid="u1")
    assert await reviews.review_token("bad") is None


async def test_the_api_server_says_who_may_do_what(reviews: ClusterReviews) -> None:
    assert await reviews.review_access(AccessSpec(User("carol"), LIST)) == Access(True)
    nobody = AccessSpec(User("system:anonymous"), PathAccess("get", "/metrics"))
    assert await reviews.review_access(nobody) == Access(False, "no rule matched")


@pytest.mark.parametrize("trouble", [429, 500, 504, "reset"])
async def test_a_trouble_that_passes_is_asked_again(
    api: ReviewingApi, reviews: ClusterReviews, trouble: int | str
) -> None:
    await reviews.review_token("good-0")
    api.answers = [trouble]
    assert await reviews.review_token("good-1") is not None
    assert len(api.reviewed) == 3


async def test_a_refusal_is_not_asked_again(api: ReviewingApi, reviews: ClusterReviews) -> None:
    api.answers = [403]
    with pytest.raises(ClusterError, match="tokenreviews: HTTP 403: out of luck"):
        await reviews.review_token("good-1")
    assert len(api.reviewed) == 1


async def test_a_connection_refused_is_told_at_once(
    api: ReviewingApi, reviews: ClusterReviews
) -> None:
    await api.stop()
    began_s = time.monotonic()
    with pytest.raises(ClusterError, match="tokenreviews"):
        await reviews.review_token("good-1")
    assert time.monotonic() - began_s < 0.4  # the first pause is half a second
