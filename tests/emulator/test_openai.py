from __future__ import annotations

import pytest

from wva_adapter.emulator.openai import CompletionBody, rough_tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "three short words", "max_tokens": 5}, 3 + 5),
        ({"prompt": [1, 2, 3, 4], "max_tokens": 5}, 4 + 5),
        ({"prompt": ["one two"], "max_tokens": 5}, 2 + 5),
        ({"messages": [{"role": "user", "content": "one two"}], "max_completion_tokens": 5}, 2 + 5),
        (
            {"messages": [{"content": [{"type": "text", "text": "one two"}]}], "max_tokens": 5},
            2 + 5,
        ),
        ({"prompt": "one"}, 1 + 256),  # no bound: what is usual
        ({"messages": "nonsense"}, 256),
        ("nonsense", 0),
    ],
)
def test_the_tokens_of_a_request_are_estimated_whatever_it_says(body: object, tokens: int) -> None:
    assert rough_tokens(body) == tokens


@pytest.mark.parametrize("prompt", ["one two", [7, 8], ["one two"], [[7, 8]]])
def test_a_prompt_is_text_or_tokens_or_a_list_of_one(prompt: object) -> None:
    body = CompletionBody.model_validate({"model": "m", "prompt": prompt})
    assert body.prompt_tokens == 2


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="the prompt is empty, want at least one token"):
        _ = CompletionBody(model="m", prompt=[]).prompt_tokens
