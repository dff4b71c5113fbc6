"""The program behind `tasks.chat_template`: renders conversations in a process of its own.

Reads one JSON object from standard input and writes one to standard output. Run by path, it
imports nothing of this package.
"""

import datetime
import json
import resource
import sys
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox


class _Generation(ext.Extension):
    """`{% generation %}` marks what a model said; it changes nothing of the text."""

    tags = {"generation"}

    def parse(self, parser):
        """The body between the tags, as it stands."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Unlike jinja's own, without escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def render(job: dict[str, Any]) -> dict[str, Any]:
    """`{"texts": [...]}`, or `{"error": ...}` where the template fails.

    Args:
      job: `template`; `conversations`, a list of lists of messages; `variables` of the template;
        `characters`, the most that all texts may have.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    texts, left = [], job["characters"]
    try:
        template = environment.from_string(job["template"])
        for messages in job["conversations"]:
            parts = []
            for part in template.generate(messages=messages, **job["variables"]):
                left -= len(part)
                if left < 0:
                    return {"error": f"it writes more than {job['characters']} characters"}
                parts.append(part)
            texts.append("".join(parts))
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # whatever a template may raise is the template's fault
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    return {"texts": texts}


def main() -> None:
    """Renders under the limits of the job."""
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    answer = json.dumps(render(job))
    sys.stdout.write(answer)


if __name__ == "__main__":
    main()
