"""The code blocks of a Markdown page, and running them in its order in one folder, as a reader would.

A comment right above a block may say how it differs from what is run:

    <!-- not run: reason -->
    <!-- run with 50_000 -> 50; 21 -> 3 -->

Blocks of Python share their names, those of shell and YAML their folder; a YAML block with a title is that file. A
block of text is what the one before it prints, and no code.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from exact_ntk.settings import load_config

COMMENT = r"(?:^<!-- (?P<said>(?:not run: |run with )[^\n]*?) -->\n)?"
FENCE = re.compile(
    COMMENT + r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """said: the comment above it, or nothing.  where: page and line.  prints: what the page says it does."""

    language: str
    title: str | None
    code: str
    said: str
    where: str
    prints: str | None = None

    @property
    def kind(self) -> str:
        """How it is run: as it stands, with smaller values, or not."""
        return {"": "as it stands", "run": "with smaller values", "not": "not run"}[self.said[:3]]

    @property
    def to_run(self) -> str:
        """The code with the values of the comment. Raises ValueError where one of those it replaces is not there."""
        code = self.code
        for change in self.said.removeprefix("run with ").split("; ") if self.kind == "with smaller values" else ():
            old, new = change.split(" -> ")
            if old not in code:
                raise ValueError(f"{self.where}: {old} is not in the block")
            code = code.replace(old, new)
        return code


def blocks(page: Path) -> list[Block]:
    """Every block of code of a page."""
    text, found = page.read_text(), []
    for m in FENCE.finditer(text):
        if m["language"] == "text":
            found[-1] = replace(found[-1], prints=m["code"])
        else:
            where = f"{page.name}:{text.count(chr(10), 0, m.start('code'))}"
            found.append(Block(m["language"], m["title"], m["code"], m["said"] or "", where))
    return found


@dataclass
class Reader:
    """Who runs a page's blocks in a folder."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> None:
        """Raises whatever the block does, and AssertionError where a command fails or prints something else."""
        code, printed = block.to_run, io.StringIO()
        match block.language:
            case "python":
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, block.where, "exec"), self.names)
            case "sh":
                printed.write(self._shell(block, code))
            case "yaml" if block.title:
                (self.folder / block.title).write_text(code)
                load_config(block.title)
            case "yaml":
                assert yaml.safe_load(code), block.where
            case other:
                raise ValueError(f"{block.where}: nothing runs a block of {other}")
        assert block.prints in (None, printed.getvalue()), f"{block.where} prints {printed.getvalue()}"

    def _shell(self, block: Block, code: str) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block.where}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout
