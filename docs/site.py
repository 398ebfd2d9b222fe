"""Hooks of MkDocs: TeX becomes MathML, so that no page needs a script for it; the search is given a name."""

import re
from typing import Any

from latex2mathml.converter import convert

TEX = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Of a page's body."""
    return TEX.sub(lambda m: _block(m[2]) if m[1] == "div" else convert(_plain(m[2])), html)


def _block(tex: str) -> str:
    """A formula of its own, which a narrow screen may scroll."""
    return f'<div class="formula" tabindex="0">{convert(_plain(tex), display="block")}</div>'


def _plain(tex: str) -> str:
    return tex.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def on_post_page(output: str, **_: Any) -> str:
    """Of a page with all around it."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')
