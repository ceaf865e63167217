"""What of the openai package's own tests this server cannot pass, and why; a pytest plugin.

A case that passes all the same fails the run, so that the list stays true.
"""

import openai
import pytest

# In openai 3.52.0. A caller who names no encoding gets `encoding_format: "base64"` into the request
# (src/openai/lib/_parsing/_embeddings.py:54). The tests' strict client holds what comes back against the type of the
# answer (src/openai/_base_client.py:786), whose `embedding` is a `List[float]` (src/openai/types/embedding.py:14), and
# decodes the text only after that (`post_parser`, src/openai/_legacy_response.py:140, src/openai/_response.py:326).
# Only numbers pass, and they are not what the request asks for: other clients, which decode without looking, would
# read them wrong. A request that leaves the choice to the package looks like one whose caller wants base64.
BASE64 = "the package asks for base64 and its strict mode wants numbers before it has decoded them"


def reason(node: str) -> tuple[str, type[Exception]] | None:
    strict = "[strict]" in node or "[aiohttp]" in node
    if "test_embeddings.py" in node and strict and "all_params" not in node:
        return BASE64, openai.APIResponseValidationError
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if known := reason(item.nodeid):
            why, error = known
            item.add_marker(pytest.mark.xfail(reason=why, raises=error, strict=True))
