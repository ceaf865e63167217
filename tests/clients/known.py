"""What of the openai package's own tests this server cannot pass, and why; a pytest plugin.

A case that passes all the same fails the run, so that the list stays true.
"""

import openai
import pytest

BASE64 = (
    "the package asks for base64 where its caller names no encoding, and its strict mode wants numbers before it has "
    "decoded them: no server that honours `encoding_format` can pass"
)
SUFFIX = "SmolLM2 was not trained to fill in the middle, and a `suffix` is refused rather than dropped"


def reason(node: str) -> tuple[str, type[Exception]] | None:
    strict = "[strict]" in node or "[aiohttp]" in node
    if "test_embeddings.py" in node and strict and "all_params" not in node:
        return BASE64, openai.APIResponseValidationError
    if "api_resources/test_completions.py" in node and "all_params" in node:
        return SUFFIX, openai.BadRequestError
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if known := reason(item.nodeid):
            why, error = known
            item.add_marker(pytest.mark.xfail(reason=why, raises=error, strict=True))
