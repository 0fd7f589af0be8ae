"""The client of the model, as a provider would ship it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator

Conversation = list[dict[str, str]]


def stream(conversation: Conversation, key: str) -> Iterator[str]:
    """The tokens of the next reply. For a key that the model knows it sends what it has generated before, and goes on."""
    request = urllib.request.Request(
        os.environ["MODEL_URL"],
        data=json.dumps({"conversation": conversation}).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": key},
    )
    with urllib.request.urlopen(request, timeout=20) as lines:
        for line in map(json.loads, lines):
            if "done" in line:
                return
            yield line["token"]
    raise ConnectionError("the model hung up amid its reply")
