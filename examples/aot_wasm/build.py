"""Builds a page that teaches a network to read handwritten digits in the browser.

Run it with `python examples/aot_wasm/build.py`, then open `digits.html`, from the disk or from any server. It holds all
there is: the training step of `examples/aot_c`, exported to WebAssembly, and the digits.
"""

import argparse
import base64
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np

import kaun as kn

HERE = Path(__file__).parent


def export(folder: Path) -> Path:
    """The same export that the C program has, for another target."""
    spec = importlib.util.spec_from_file_location("export_to_c", HERE.parent / "aot_c" / "export.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Path(module.main(folder, target="wasm32"))


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main(page: Path) -> Path:
    """Write the page, one file that needs no other."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(Path(temporary))
        if not (folder / "step.wasm").exists():
            raise SystemExit("LLVM's linker for WebAssembly, wasm-ld, is needed (Debian: apt install lld)")
        wasm, module = (folder / "step.wasm").read_bytes(), (folder / "step.mjs").read_text()
        description = json.loads((folder / "step.json").read_text())
    digits = kn.datasets.digits(flatten=True)
    data = {"module": text_of(wasm), "steps": 20 * (len(digits.y_train.numpy()) // 64)}
    for name, images, labels in (("training", digits.x_train, digits.y_train), ("test", digits.x_test, digits.y_test)):
        arrays = (np.rint(images.numpy() * 16).astype(np.uint8), labels.numpy().astype(np.uint8))
        data[name] = [text_of(array.tobytes()) for array in arrays]
    leaves = description["state"]["leaves"]
    parameters = sum(leaf["count"] for leaf in leaves if leaf["path"].startswith("params."))
    parts = {
        "$PARAMETERS": f"{parameters:,}",
        "$KILOBYTES": f"{len(wasm) / 1000:.0f}",
        "$DATA": json.dumps(data),
        "$MODULE": module,
        "$PAGE": (HERE / "page.js").read_text(),
    }
    text = (HERE / "page.html").read_text()
    for name, part in parts.items():
        text = text.replace(name, part)
    page.write_text(text)
    print(f"{page}: {len(text) / 1000:.0f} kB, of which {len(wasm) / 1000:.0f} kB are the training step")
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=HERE / "digits.html")
    main(parser.parse_args().page)
