"""Models from the hub: files, configuration and weights, from a local cache folder and a server on this machine."""

from __future__ import annotations

import http.server
import json
import os
import struct
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from kaun import hf, nx, ptree

MODEL = "organization/tiny-bert"
OLD, NEW = "a" * 40, "0123456789" * 4

# Of the published index of a three-shard test model (transformers' tiny BERT), the rows of one layer; `total_size` is
# still that of the whole model.
RECORDED_INDEX = {
    "metadata": {"total_size": 1992324},
    "weight_map": {
        "embeddings.LayerNorm.bias": "model-00003-of-00003.safetensors",
        "embeddings.LayerNorm.weight": "model-00003-of-00003.safetensors",
        "embeddings.position_embeddings.weight": "model-00002-of-00003.safetensors",
        "embeddings.word_embeddings.weight": "model-00001-of-00003.safetensors",
        "encoder.layer.0.attention.output.dense.bias": "model-00003-of-00003.safetensors",
        "encoder.layer.0.attention.output.dense.weight": "model-00003-of-00003.safetensors",
        "encoder.layer.0.attention.self.key.bias": "model-00003-of-00003.safetensors",
    },
}
SHARDS = sorted(set(RECORDED_INDEX["weight_map"].values()))


def values():
    """A tensor for each name of the index: of the dtypes that models come in."""
    random = np.random.default_rng(0)
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16, np.float32, np.int64, np.float32, np.float64]
    return {
        name: (random.standard_normal((3, position + 1)) * 10).astype(dtype)
        for position, (name, dtype) in enumerate(zip(RECORDED_INDEX["weight_map"], dtypes, strict=True))
    }


def sharded(index=RECORDED_INDEX):
    """The files of a model in shards."""
    files = {"model.safetensors.index.json": json.dumps(index).encode()}
    for shard in SHARDS:
        names = [name for name, place in RECORDED_INDEX["weight_map"].items() if place == shard]
        files[shard] = safetensors.numpy.save({name: values()[name] for name in names})
    return files


class Hub:
    """A cache folder in the hub's layout: blobs, references from branches to commits, snapshots of commits."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, files, model=MODEL, commit=NEW, reference="main"):
        root = self.folder / ("models--" + model.replace("/", "--"))
        for name in ("refs", "blobs"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "refs" / reference).write_text(commit)
        for name, content in files.items():
            blob, link = root / "blobs" / f"{commit[:4]}-{name.replace('/', '-')}", root / "snapshots" / commit / name
            blob.write_bytes(content)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))

    def load(self, model=MODEL, **options):
        return hf.load_weights(model, cache_dir=self.folder, offline=True, **options)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1, read when it is imported
    return Hub(tmp_path / "hub")


def same(tree, expected):
    """Whether the leaves are those values, bit for bit, at those paths."""
    found = dict(ptree.flatten_with_paths(tree))
    assert sorted(found) == sorted(expected)
    for path, array in expected.items():
        assert isinstance(found[path], nx.Tensor) and found[path].shape == array.shape
        assert found[path].numpy().dtype == array.dtype and found[path].numpy().tobytes() == array.tobytes()


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_found_at_its_revision(hub):
    hub.put({"config.json": b"1", "folder/other.json": b"2"})
    hub.put({"config.json": b"3"}, commit=OLD, reference="v1.0")
    path = hf.download_file(MODEL, "config.json", cache_dir=hub.folder)
    assert path.read_bytes() == b"1"
    assert hf.download_file(MODEL, "folder/other.json", cache_dir=str(hub.folder)).read_bytes() == b"2"
    for revision, content in (("v1.0", b"3"), (OLD, b"3"), (NEW, b"1")):
        found = hf.download_file(MODEL, "config.json", revision=revision, cache_dir=hub.folder, offline=True)
        assert found.read_bytes() == content


def test_what_the_cache_does_not_have_is_an_error_offline(hub):
    hub.put({"config.json": b"{}"})
    for options in ({"offline": True}, {}):  # the second is offline by the environment
        with pytest.raises(FileNotFoundError, match=f"hf.download_file: no `x.json` of {MODEL} at revision main: "):
            hf.download_file(MODEL, "x.json", cache_dir=hub.folder, **options)
    with pytest.raises(FileNotFoundError, match=r"hf.load_config: no `config.json` of .* at revision v2"):
        hf.load_config(MODEL, revision="v2", cache_dir=hub.folder)
    with pytest.raises(
        FileNotFoundError,
        match=rf"hf.load_weights: {MODEL} at revision main has neither `model.safetensors` \(.*\) nor "
        r"`model.safetensors.index.json` \(.*\)",
    ):
        hub.load()


@pytest.mark.parametrize("filename", ["", "../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "C:x", ".", "a\0b"])
def test_a_file_outside_the_repository_is_refused(hub, filename):
    with pytest.raises(ValueError, match=r"hf.download_file: got the filename .*, expected a path inside"):
        hf.download_file(MODEL, filename, cache_dir=hub.folder)


def test_names_that_cannot_be_are_refused(hub):
    with pytest.raises(ValueError, match=r"hf.download_file: got the model_id 'a/b/c'"):
        hf.download_file("a/b/c", "config.json", cache_dir=hub.folder)
    with pytest.raises(TypeError, match=r"hf.download_file: got NoneType for revision, expected str"):
        hf.download_file(MODEL, "config.json", revision=None)
    with pytest.raises(TypeError, match=r"hf.load_weights: got int for model_id, expected str"):
        hf.load_weights(7)
    with pytest.raises(ValueError, match=r"got the filename 'model.bin', expected one that ends in .safetensors"):
        hub.load(filename="model.bin")


def test_without_the_hubs_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"hf.load_weights: needs .* huggingface_hub.*: pip install 'kaun\[hf\]'"):
        hf.load_weights(MODEL)


def test_the_configuration_is_a_dict(hub):
    hub.put({"config.json": b'{"hidden_size": 32, "layers": [1, 2]}', "other.json": b'{"a": null}'})
    assert hf.load_config(MODEL, cache_dir=hub.folder) == {"hidden_size": 32, "layers": [1, 2]}
    assert hf.load_config(MODEL, filename="other.json", cache_dir=hub.folder) == {"a": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is a JSON list, expected an object"),
        (b"null", "is a JSON NoneType, expected an object"),
    ],
)
def test_a_configuration_of_another_form_is_an_error(hub, content, message):
    hub.put({"config.json": content})
    with pytest.raises(ValueError, match=f"hf.load_config: .*config.json {message}"):
        hf.load_config(MODEL, cache_dir=hub.folder)


def test_a_huge_configuration_is_not_read(hub, tmp_path):
    hub.put({"config.json": b"{}"})
    path = hf.download_file(MODEL, "config.json", cache_dir=hub.folder)
    with open(os.path.realpath(path), "r+b") as file:
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match=r"has 68,157,440 bytes, expected at most 67,108,864"):
        hf.load_config(MODEL, cache_dir=hub.folder)


# --- weights -------------------------------------------------------------------------------------------------------


def test_a_single_file_becomes_a_tree(hub):
    hub.put({"model.safetensors": safetensors.numpy.save(values())})
    weights = hub.load()
    same(weights, values())
    assert isinstance(weights, ptree.Dict) and type(weights["encoder"]["layer"]) is tuple
    assert weights["encoder"]["layer"][0]["attention"]["self"]["key"]["bias"].shape == (3, 7)


def test_shards_become_the_same_tree_as_a_single_file(hub):
    hub.put(sharded())
    same(hub.load(), values())


def test_files_of_another_name_and_in_a_folder_are_found(hub):
    files = {f"unet/{name}": content for name, content in sharded().items()}
    hub.put({**files, "other.safetensors": safetensors.numpy.save({"x": np.ones(2)})})
    same(hub.load(filename="unet/model.safetensors.index.json"), values())
    same(hub.load(filename="other.safetensors"), {"x": np.ones(2)})


def test_weights_take_the_structure_and_dtypes_of_like(hub):
    hub.put(sharded())
    name = "embeddings.position_embeddings.weight"
    like = {"embeddings": {"position_embeddings": {"weight": nx.zeros((3, 3), dtype=nx.float32)}}}
    loaded = hub.load(like=like)
    assert ptree.structure(loaded) is ptree.structure(like)
    same(loaded, {name: values()[name].astype(np.float32)})


def test_shards_that_like_does_not_need_are_not_even_downloaded(hub):
    files = sharded()
    del files["model-00001-of-00003.safetensors"], files["model-00003-of-00003.safetensors"]
    hub.put(files)
    like = {"position": np.zeros((3, 3), ml_dtypes.bfloat16)}
    names = {"embeddings.position_embeddings.weight": "position"}
    same(hub.load(like=like, rename=names.get), {"position": values()["embeddings.position_embeddings.weight"]})
    with pytest.raises(FileNotFoundError, match=r"hf.load_weights: no `model-0000[13]-of-00003.safetensors` of"):
        hub.load()


def test_rename_maps_and_leaves_out_names(hub):
    hub.put({"model.safetensors": safetensors.numpy.save({"fc1.weight": np.ones(2), "fc2.weight": np.zeros(3)})})
    same(hub.load(rename=lambda name: name.replace("fc1", "0") if "1" in name else None), {"0.weight": np.ones(2)})
    with pytest.raises(ValueError, match=r"`fc1.weight` and `fc2.weight` are both renamed to `w`"):
        hub.load(rename=lambda name: "w")
    with pytest.raises(TypeError, match=r"hf.load_weights: rename\('fc1.weight'\) gave int, expected str or None"):
        hub.load(rename=lambda name: 1)


def test_a_missing_tensor_and_a_wrong_shape_name_themselves(hub):
    hub.put({"model.safetensors": safetensors.numpy.save({"a": np.zeros((2, 3))})})
    where = f"`model.safetensors` of {MODEL} at revision {NEW}"
    with pytest.raises(ValueError, match=rf"hf.load_weights: {where} has no `b` and 1 more; it has `a`"):
        hub.load(like={"a": np.zeros((2, 3)), "b": np.zeros(1), "c": np.zeros(1)})
    with pytest.raises(ValueError, match=r"`a` in model.safetensors has shape \[2, 3\], expected \[3, 2\]"):
        hub.load(like={"a": np.zeros((3, 2))})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.weight", "a.weight.scale"], "`a.weight.* leaf"),
        (["a..b"], "empty"),
        (["a[0]"], r"\[0\]"),
        (["a.99999999"], "index 99999999"),
        ([".".join("a" * 5000)], "has more than 100 steps"),
    ],
)
def test_names_that_make_no_tree_are_an_error_and_can_be_renamed(hub, names, message):
    hub.put({"model.safetensors": safetensors.numpy.save({name: np.zeros(1) for name in names})})
    with pytest.raises(ValueError, match=f"hf.load_weights: .*{message}"):
        hub.load()
    same(hub.load(rename=lambda name: f"x{len(name)}"), {f"x{len(name)}": np.zeros(1) for name in names})


@pytest.mark.parametrize(
    "place",
    ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "a\\b.safetensors", "m.bin", 3, {}],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(hub, place):
    hub.put({"model.safetensors.index.json": json.dumps({"weight_map": {"w": place}}).encode()})
    (hub.folder / "secret.safetensors").write_bytes(safetensors.numpy.save({"w": np.ones(1)}))
    with pytest.raises(ValueError, match=r"says that `w` is in .*, expected the name of a .safetensors file beside"):
        hub.load()


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_an_index_without_a_map_is_an_error(hub, index):
    hub.put({"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(ValueError, match=r"hf.load_weights: .*index.json has no `weight_map`"):
        hub.load()


def test_an_index_that_lists_what_is_not_there_is_an_error(hub):
    wrong = {"weight_map": {**RECORDED_INDEX["weight_map"], "pooler.weight": SHARDS[1]}}
    hub.put(sharded(wrong))
    with pytest.raises(ValueError, match=rf"says that `pooler.weight` is in {SHARDS[1]}, which has none"):
        hub.load()


def test_a_shard_cut_short_is_an_error(hub):
    files = sharded()
    whole = files[SHARDS[2]]
    for position, length in enumerate((0, 7, 40, len(whole) - 1)):
        commit = f"{position:040d}"
        hub.put({**files, SHARDS[2]: whole[:length]}, commit=commit, reference=f"v{position}")
        with pytest.raises(ValueError, match=rf"hf.load_weights: .*{SHARDS[2]} is not a whole safetensors file"):
            hub.load(revision=f"v{position}")


def test_a_dtype_without_counterpart_names_the_tensor(hub):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    hub.put({"model.safetensors": struct.pack("<Q", len(header)) + header + b"\0\0"})
    with pytest.raises(ValueError, match=r"`w` in model.safetensors has the unsupported dtype F8_E4M3"):
        hub.load()


# --- download ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A hub of one private model: its branch moves on to another commit as soon as the index has been given."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 20

        def answer(self):
            parts = self.path.partition("?")[0].split("/")
            served.requests.append((self.command, self.path, self.headers["Authorization"]))
            revision, filename = (parts[4], parts[5]) if parts[1:4] == [*MODEL.split("/"), "resolve"] else ("", "")
            commit = served.head if revision == "main" else revision
            content = served.commits.get(commit, {}).get(filename)
            if self.headers["Authorization"] != "Bearer hf_secret" or content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if content is None else "RepoNotFound")
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{commit[:6]}-{filename}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
                if filename.endswith("index.json"):
                    served.head = OLD

        do_GET = do_HEAD = answer

        def log_message(self, *arguments):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    served.requests, served.head = [], NEW
    other = {name: safetensors.numpy.save({"moved": np.zeros(1)}) for name in SHARDS}
    served.commits = {NEW: sharded(), OLD: other}
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join(5)


LOAD_AND_SUM = """
import sys
from kaun import hf, ptree
weights = hf.load_weights(sys.argv[1], token="hf_secret", cache_dir=sys.argv[2])
print(len(ptree.leaves(weights)))
"""


def test_shards_are_downloaded_with_the_token_and_all_of_the_commit_of_their_index(hub, server):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(hub.folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", LOAD_AND_SUM, MODEL, str(hub.folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(values())}\n"
    fetched = [path for method, path, _ in server.requests if method == "GET" and path.endswith(".safetensors")]
    assert sorted(fetched) == [f"/{MODEL}/resolve/{NEW}/{shard}" for shard in SHARDS]
    assert {token for _, path, token in server.requests if "/resolve/" in path} == {"Bearer hf_secret"}
    # What was downloaded is what the cache has, without the network.
    same(hub.load(revision=NEW), values())
