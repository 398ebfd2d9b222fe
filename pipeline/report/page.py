"""report.html: the table, the figures and where they came from, in one file that needs no other."""

import base64
import html
import json
from typing import Any

from exact_ntk.records import Results
from exact_ntk.report.tables import grid, notes

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; } .sub { color: #666; margin-top: .2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1.5rem 0; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #444; } td:first-child { font-weight: 600; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; } li { color: #444; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px; }
"""


def page(results: Results, provenance: dict[str, Any], figures: dict[str, bytes]) -> str:
    """The report. figures: caption -> PNG bytes."""
    escape = html.escape
    header, rows = grid(results)
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    pictures = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, png in figures.items()
    )
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(results))
    made = provenance["report"]
    versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(results.name)}: accuracy table</title><style>{STYLE}</style></head><body>
<h1>{escape(results.name)}</h1>
<p class="sub">Convolutional neural tangent kernels beside the finite networks they are the limit of</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<ul>{remarks}</ul>
{pictures}
<h2>Provenance</h2>
<p>{escape(made["device"])}, {made["threads"]} threads; {escape(versions)}</p>
<details><summary>Resolved config</summary><pre>{escape(json.dumps(results.config, indent=1))}</pre></details>
<details><summary>Stages and cells</summary><pre>{escape(json.dumps(provenance, indent=1))}</pre></details>
</body></html>
"""
