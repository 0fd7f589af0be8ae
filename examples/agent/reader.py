"""Somebody who reads along: what the agent publishes while the model talks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from durable_client import Handle

# When nothing happens for so many seconds, something is wrong.
PATIENCE = 60.0
SPEAKERS = {"user": "customer", "assistant": "agent", "tool": "tool"}


class Reader:
    """Prints a conversation as it grows. After a crash it goes on where it was."""

    def __init__(self, handle: Handle[str]) -> None:
        self._handle = handle
        self._shown: list[str] = []
        self._broken_off = False

    def read_until(self, reached: Callable[[], Any]) -> None:
        """Raises TimeoutError when that does not happen."""
        give_up = time.monotonic() + PATIENCE
        # What was broken off goes on with its first new words.
        self._broken_off = bool(self._shown)
        while not reached():
            if time.monotonic() > give_up:
                raise TimeoutError(f"workflow {self._handle.workflow_id} does not go on")
            time.sleep(0.02)
            self._show(self._handle.state().get("conversation", []))
        self._show(self._handle.state().get("conversation", []))
        print(flush=True)

    def read_to_the_end(self) -> None:
        self.read_until(lambda: self._handle.status() not in ("pending", "running", "sleeping", "waiting"))
        self._handle.result()

    def is_at(self, reply: int, characters: int) -> bool:
        """Whether so much was shown of a reply of the agent; they count from 1."""
        replies = self._shown[1::2]
        return len(replies) >= reply and len(replies[reply - 1]) >= characters

    def _show(self, conversation: list[dict[str, str]]) -> None:
        for place, message in enumerate(conversation):
            if place == len(self._shown):
                print(f"\n  {SPEAKERS[message['role']] + ':':10}", end="")
                self._shown.append("")
                self._broken_off = False
            # What was published last before a crash is published again, word by word.
            new = message["content"][len(self._shown[place]) :]
            if new and self._broken_off:
                print(f"{'':11}…", end="")
                self._broken_off = False
            print(new.replace("\n", f"\n{'':12}"), end="", flush=True)
            self._shown[place] += new
