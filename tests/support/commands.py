"""The command line, called in this process: a command then costs what it does, not the start of an interpreter."""

import contextlib
import io
import json
import os
from dataclasses import dataclass
from typing import Any

from flows import temporary_server
from flows.cli import main
from tasks import s3_client


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def payload(self) -> dict[str, Any]:
        """The object that ``--json`` promises as the last line of standard output."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def error(self) -> str:
        """The one line that says what is wrong; fails when there is more than that, or a trace."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in self.err + self.out, self
        assert self.err.rstrip().endswith(lines[0]), f"the message is not one line at the end: {self}"
        return lines[0]


def dalle(*words: str, **env: str) -> Said:
    """``dalle WORDS...`` with ``env`` laid over the environment, which is restored afterwards."""
    before = dict(os.environ)
    out, err = io.StringIO(), io.StringIO()
    os.environ.update(env)
    s3_client.connection.cache_clear()  # one client per process and options, but credentials come from the environment
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(words))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        for server in temporary_server._planned:  # one per process is planned, and no command here may start it
            server.close()
        temporary_server._planned.clear()
        os.environ.clear()
        os.environ.update(before)
    return Said(code, out.getvalue(), err.getvalue())
