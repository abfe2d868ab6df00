"""What the tests of the guide's rows share: their registry, the names that snippets use, and the cells of its tables.

Every row of the guide has a function that shows it, registered under "section. row". `docs/rows.md` lists both.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from docs_pages import ROOT

import kaun as kn
from kaun import nx, ptree

GUIDE = (ROOT / "docs" / "guide.md").read_text()
Row = Callable[[], None]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Marks the test of a row: "10. Dropout" is the row "Dropout" of section 10."""

    def register(function: Row) -> Row:
        assert name not in ROWS
        ROWS[name] = function
        return function

    return register


def table(section: int) -> dict[str, str]:
    """The first and the last column of the table in a section of the guide."""
    text = GUIDE.split(f"\n## {section}. ")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in lines}


@functools.cache
def setting() -> dict[str, Any]:
    """The names that the cheat sheet uses."""
    model = kn.layer.sequential([
        kn.layer.linear(in_features=8, out_features=16), kn.layer.relu(), kn.layer.dropout(rate=0.5),
        kn.layer.linear(in_features=16, out_features=10),
    ])  # fmt: skip
    trainer = kn.train.make(model=model, optimizer=kn.optim.adam(lr=1e-2))
    with nx.rng.run(seed=0):
        st = kn.train.init(trainer)
        x, labels = nx.rng.normal((128, 8)), nx.rng.randint((128,), 0, 10)

    def loss(logits: nx.Tensor) -> nx.Tensor:
        return kn.loss.cross_entropy_sparse(logits, labels)

    return {
        "kn": kn, "nx": nx, "model": model, "trainer": trainer, "st": st, "vars": st.vars, "x": x, "y": labels,
        "labels": labels, "logits": kn.train.predict(trainer, st, x), "loss": loss, "lr": 1e-3, "N": 100,
        "grads": ptree.map(lambda p: 3.0 * nx.ones_like(p), st.vars.params), "max_norm": 1.0,
        "embedding_layer": kn.layer.embedding(vocab_size=10, embed_dim=4),
        "dense_layer": kn.layer.linear(in_features=4, out_features=2),
    }  # fmt: skip


def cell(task: str, **names: Any) -> Any:
    """The value of the cheat sheet's Kaun column for a task."""
    (code,) = re.findall(r"^`([^`]*)`$", table(10)[task])
    with nx.rng.run(seed=1):
        return eval(code, {**setting(), **names})


def arrays(tree: Any) -> list[np.ndarray]:
    return [leaf.numpy() for leaf in ptree.leaves(tree)]


def same(first: Any, second: Any) -> bool:
    return all((a == b).all() for a, b in zip(arrays(first), arrays(second), strict=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def fresh(optimizer: Any, seed: int = 0) -> tuple[kn.train.Trainer, kn.train.State]:
    trainer = kn.train.make(model=setting()["model"], optimizer=optimizer)
    with nx.rng.run(seed=seed):
        return trainer, kn.train.init(trainer)


def moved(optimizer: Any, gradients: list[float]) -> list[float]:
    """Where a parameter that starts at 1 is after each of the gradients."""
    params: Any = {"w": nx.asarray([1.0])}
    opt_state, places = kn.optim.init(optimizer, params), []
    for gradient in gradients:
        params, opt_state = kn.optim.update(optimizer, opt_state, params, {"w": nx.asarray([gradient])})
        places.append(params["w"].item())
    return places


def norm_and_dropout() -> tuple[kn.layer.Layer, kn.layer.Vars]:
    layer = kn.layer.sequential([kn.layer.batch_norm(num_features=8, momentum=0.9), kn.layer.dropout(rate=0.5)])
    return layer, kn.layer.init(layer)


def run_row(name: str, folder: Path) -> None:
    with contextlib.chdir(folder):
        ROWS[name]()


def of_sections(first: int, last: int) -> list[str]:
    """The names of the rows of these sections."""
    return [name for name in ROWS if first <= int(name.partition(".")[0]) <= last]


def functions_shown(section: int, prefix: str) -> list[str]:
    """The functions that lines of a section's snippets call, such as `adam` for "kn.optim.adam(...)"."""
    text = GUIDE.split(f"\n## {section}. ")[1].split("\n## ")[0]
    return re.findall(rf"^{re.escape(prefix)}\.(\w+)\(", text, re.MULTILINE)


def listed() -> dict[str, str]:
    """The rows of `docs/rows.md` and the functions it names for them."""
    found, section = {}, ""
    for line in (ROOT / "docs" / "rows.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").partition(".")[0]
        elif match := re.fullmatch(r"\| (?P<row>[^|`-][^|]*?) \| (?P<kaun>[^|]+) \| `(?P<test>\w+)` \|", line):
            found[f"{section}. {match['row']}"] = match["test"]
    return found
