"""The page: one HTML file that holds everything it needs and opens from disk."""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib import resources
from string import Template

from kaun.compiler.ir.text import visible
from kaun.tools.viz.model import Model

# In the order in which they are read.
_SCRIPTS = ("data.js", "selection.js", "text.js", "layout.js", "paint.js", "graph.js", "main.js")


def page(model: Model) -> str:
    """The HTML text of the viewer for a model; equal models give equal text."""
    here = resources.files(__package__)
    parts = {name: (here / "page" / name).read_text("utf-8") for name in ("page.html", "style.css", *_SCRIPTS)}
    vendor = here / "vendor"
    return Template(parts["page.html"]).substitute(
        TITLE=html.escape(visible(f"{model.title} · Kaun")),
        STYLE=parts["style.css"],
        SCRIPT="\n".join(parts[name] for name in _SCRIPTS),
        LAYOUT=(vendor / "elk-api.js").read_text("utf-8"),
        WORKER=_packed((vendor / "elk-worker.min.js").read_text("utf-8")),
        DATA=_packed(json.dumps(model.data, separators=(",", ":"))),
    )


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
