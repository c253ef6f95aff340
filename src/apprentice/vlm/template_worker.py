"""Write chats by a model's chat template, as a process of its own that may be stopped: a template can loop for ever.

It reads a line of JSON for each chat and answers with one. What a template finds here is what Transformers' own
`render_jinja_template` offers it (a test compares them); this needs 0.2 s and 25 MB, Transformers ten times that. The
process is run by the file's name, imports nothing of ours, and ends with its input.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0  # of CPU for one chat; real templates take milliseconds
MEMORY = 256 << 20  # bytes of address space
LONGEST = 100_000  # characters


class Generation(Extension):
    """`{% generation %}` marks what a model is trained on; here it is plain text."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def written(template: str, variables: dict[str, Any]) -> str:
    """The chat. Raises what Jinja does."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template).render(**variables)


def main() -> None:
    """Answer each line until there is none; a chat that takes too long ends the process by a signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with suppress(ValueError, OSError):  # macOS knows the limit and refuses it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        template, variables = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            text = written(template, variables)
            answer = {"text": text} if len(text) <= LONGEST else {"fault": f"{len(text):,} characters"}
        except MemoryError:
            answer = {"fault": f"a template that takes more than {MEMORY >> 20} MB"}
        except Exception as error:  # whatever a template does wrong, its author's message tells it
            answer = {"fault": f"{type(error).__name__}: {str(error)[:300]}"}
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
