"""Chat templates: the text that a model was trained to see for a conversation.

A template is a program that came with the weights, so it runs in a sandbox, in a process of its
own whose time and memory are limited.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any, Sequence

Conversation = Sequence[dict[str, Any]]
"""Messages with the keys `role` and `content`, and what else the template reads."""

CPU_SECONDS = 20
"""For all conversations of a call."""
MEMORY = 1 << 30
"""Bytes of address space."""
CHARACTERS = 64 << 20
"""Of all texts of a call."""

_RENDERER = pathlib.Path(__file__).with_name("chat_renderer.py")


def render(
    template: str,
    conversations: Sequence[Conversation],
    *,
    add_generation_prompt: bool = False,
    variables: dict[str, Any] | None = None,
) -> list[str]:
    """The text of every conversation.

    As the `transformers` library renders it: blocks are trimmed, and `raise_exception`,
    `strftime_now`, `tojson`, `break`, `continue` and `generation` are there.

    Args:
      template: Jinja source.
      conversations: lists of messages.
      add_generation_prompt: end with what comes before an answer of the model.
      variables: what else the template reads: special tokens by name, `tools`, ...

    Raises:
      ValueError: the template is wrong, refuses the conversation, does what the sandbox forbids,
        or takes too much time, memory or text.
    """
    defaults = {"tools": None, "documents": None}
    job = {
        "template": template,
        "conversations": [list(messages) for messages in conversations],
        "variables": {
            **defaults,
            **(variables or {}),
            "add_generation_prompt": add_generation_prompt,
        },
        "characters": CHARACTERS,
        "cpu_seconds": CPU_SECONDS,
        "memory": MEMORY,
    }
    # -P: the folder of the program, whose files have common names, is not searched for modules.
    command = [sys.executable, "-P", str(_RENDERER)]
    done = subprocess.run(
        command, input=json.dumps(job).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise ValueError(_why(done))
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(f"the chat template fails: {answer['error']}")
    return answer["texts"]


def _why(done: subprocess.CompletedProcess) -> str:
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    if "No module named 'jinja2'" in last:
        return "chat templates need the package jinja2; install jaxreward[lm]"
    if done.returncode < 0:
        return (
            f"the chat template fails: ended by signal {-done.returncode}; allowed are "
            f"{CPU_SECONDS} s and {MEMORY >> 20} MiB"
        )
    return f"the chat template fails: {last[:400]}"
