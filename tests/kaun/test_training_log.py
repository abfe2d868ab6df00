"""The log of training holds what happened, in files that TensorBoard reads, and takes nothing from the training."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from kaun.tools import command, event_files, plot

import kaun as kn
from kaun import layer, loss, nx, train

pytest.importorskip("tensorboardX")
Figure = pytest.importorskip("matplotlib.figure").Figure


def trainer_of(optimizer: object) -> train.Trainer:
    model = layer.sequential([
        layer.linear(in_features=8, out_features=16), layer.relu(), layer.linear(in_features=16, out_features=3)
    ])  # fmt: skip
    return train.make(model=model, optimizer=optimizer)


def started(trainer: train.Trainer) -> train.State:
    with nx.rng.run(seed=0):
        return train.init(trainer)


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    return [(random.standard_normal((16, 8), np.float32), random.integers(0, 3, 16)) for _ in range(count)]


def fitted(trainer: train.Trainer, data: list, **options: object) -> tuple[train.State, list[float]]:
    losses: list[float] = []
    state = train.fit(
        trainer, started(trainer), data, loss=loss.cross_entropy_sparse,
        report=lambda step, loss, state: losses.append(loss), **options,
    )  # fmt: skip
    return state, losses


SCHEDULES = {
    "constant": (kn.optim.schedule.constant(1e-2), lambda step: 1e-2),
    "traced": (kn.optim.schedule.cosine_decay(init_value=1e-2, decay_steps=20), None),
    "host": (lambda step: 1e-2 / step, lambda step: 1e-2 / step),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_losses_and_learning_rates_are_those_of_the_steps(kind: str, tmp_path: Path) -> None:
    schedule, expected = SCHEDULES[kind]
    _, losses = fitted(trainer_of(kn.optim.adamw(lr=schedule)), batches(12), log_dir=tmp_path)
    found = event_files.scalars(tmp_path)
    assert [step for step, _ in found["loss"]] == list(range(1, 13))
    np.testing.assert_array_equal([value for _, value in found["loss"]], np.float32(losses))
    wanted = [(expected or schedule)(step) for step in range(1, 13)]
    np.testing.assert_allclose([value for _, value in found["learning_rate"]], wanted, rtol=1e-5)


def test_the_norm_is_that_of_all_gradients_together(tmp_path: Path) -> None:
    trainer = trainer_of(kn.optim.sgd(lr=0.1))
    data = batches(1)
    state = started(trainer)
    fitted(trainer, data, log_dir=tmp_path)

    def objective(params: object) -> nx.Tensor:
        variables = state.vars.with_params(params)
        logits, _ = layer.apply(trainer.model, variables, nx.asarray(data[0][0]), training=True)
        return loss.cross_entropy_sparse(logits, nx.asarray(data[0][1]))

    grads = [leaf.numpy().astype(np.float64) for leaf in kn.ptree.leaves(kn.grad(objective)(state.vars.params))]
    wanted = math.sqrt(sum((grad**2).sum() for grad in grads))
    ((step, value),) = event_files.scalars(tmp_path)["gradient_norm"]
    assert step == 1 and value == pytest.approx(wanted, rel=1e-5)


def test_training_goes_the_same_way_with_a_log(tmp_path: Path) -> None:
    trainer = trainer_of(kn.optim.adamw(lr=1e-2))
    plain, losses = fitted(trainer, batches(12))
    logged, others = fitted(trainer, batches(12), log_dir=tmp_path)
    np.testing.assert_allclose(losses, others, rtol=1e-6)
    for a, b in zip(kn.ptree.leaves(plain.vars.params), kn.ptree.leaves(logged.vars.params), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-7)


def test_compilation_and_kernels_are_in_the_log(tmp_path: Path) -> None:
    fitted(trainer_of(kn.optim.adamw(lr=1e-2)), batches(12), log_dir=tmp_path)
    found = event_files.scalars(tmp_path)
    assert {"compiler/kernels_compiled", "compiler/seconds", "cache/memory_hits", "cache/disk_hits"} <= set(found)
    ((step, seconds),) = found["kernels/seconds"]
    assert step == 10 and seconds > 0
    (file,) = tmp_path.glob("*tfevents*")
    assert b"| kernel | time | share | computes | layers |" in file.read_bytes()


def test_a_run_that_goes_on_is_logged_where_the_other_ended(tmp_path: Path) -> None:
    trainer = trainer_of(kn.optim.adamw(lr=1e-2))
    state, _ = fitted(trainer, batches(3), log_dir=tmp_path)
    train.fit(trainer, state, batches(2), loss=loss.cross_entropy_sparse, log_dir=tmp_path)
    assert [step for step, _ in event_files.scalars(tmp_path)["loss"]] == [1, 2, 3, 4, 5]


def test_a_run_that_starts_anew_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (3, 5):
        fitted(trainer_of(kn.optim.adamw(lr=1e-2)), batches(count), log_dir=tmp_path)
    first, second = event_files.runs(tmp_path)
    assert [len(run["loss"]) for run in (first, second)] == [3, 5]
    assert command.main(["plot", str(tmp_path)]) == 0


def test_what_was_logged_before_training_was_stopped_is_there(tmp_path: Path) -> None:
    def stop(step: int, **_: object) -> None:
        if step == 4:
            raise RuntimeError("stopped")

    trainer = trainer_of(kn.optim.sgd(lr=0.1))
    with pytest.raises(RuntimeError, match="stopped"):
        train.fit(
            trainer, started(trainer), batches(9), loss=loss.cross_entropy_sparse, report=stop, log_dir=tmp_path
        )
    assert len(event_files.scalars(tmp_path)["loss"]) == 4


def test_a_full_disk_ends_the_log_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboardX.event_file_writer import EventsWriter

    def full(self: EventsWriter, event: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = trainer_of(kn.optim.sgd(lr=0.1))
    fitted(trainer, batches(1), log_dir=tmp_path / "first")
    monkeypatch.setattr(EventsWriter, "_write_serialized_event", full)
    with pytest.raises(OSError, match="No space"):
        fitted(trainer, batches(1), log_dir=tmp_path / "second")
    monkeypatch.undo()
    monkeypatch.setattr(EventsWriter, "flush", full)
    written = EventsWriter.write_event
    monkeypatch.setattr(EventsWriter, "write_event", lambda self, event: (written(self, event), full(self, event)))
    opened = EventsWriter.__init__

    def open_only(self: EventsWriter, *arguments: object) -> None:
        with monkeypatch.context() as inner:
            inner.setattr(EventsWriter, "write_event", written)
            opened(self, *arguments)

    monkeypatch.setattr(EventsWriter, "__init__", open_only)
    with pytest.warns(UserWarning, match="the log ends here"):
        state, losses = fitted(trainer, batches(5), log_dir=tmp_path / "third")
    assert len(losses) == 5 and int(state.step) == 5


def test_a_folder_that_cannot_be_made_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        fitted(trainer_of(kn.optim.sgd(lr=0.1)), batches(1), log_dir=tmp_path / "file" / "log")


# --- reading and drawing ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fitted(trainer_of(kn.optim.adamw(lr=1e-2)), batches(60), log_dir=tmp_path)
    return tmp_path


def test_a_log_is_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plot", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "training.png")
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_that_is_cut_off_is_read_as_far_as_it_goes(folder: Path) -> None:
    (file,) = folder.glob("*tfevents*")
    content = file.read_bytes()
    counts = []
    for length in range(len(content) - 200, len(content), 7):
        file.write_bytes(content[:length])
        counts.append(len(event_files.scalars(folder)["loss"]))
    assert counts == sorted(counts) and counts[-1] >= 59


def test_a_damaged_log_is_refused_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = folder.glob("*tfevents*")
    content = bytearray(file.read_bytes())
    for place in (0, 9, 14, 300, 1000):
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged at byte"):
            event_files.scalars(folder)
    assert command.main(["plot", str(folder)]) == 1
    assert file.name in capsys.readouterr().err


def test_a_folder_without_a_log_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plot", str(tmp_path)]) == 1
    assert "log_dir=" in capsys.readouterr().err


def test_losses_that_are_not_finite_are_drawn_too(tmp_path: Path) -> None:
    from kaun.tools.plot import draw

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw([{"loss": [(1, 1.0), (2, math.nan), (3, math.inf)]}], tmp_path / "loss.png", "run")
    assert (tmp_path / "loss.png").exists()


def test_steps_that_are_not_finite_are_marked_and_hide_no_others(tmp_path: Path) -> None:
    losses = [1.0] * 100
    losses[20], losses[30] = math.nan, math.inf
    smooth = plot._smooth(losses)
    assert smooth == [1.0] * 100
    assert all(map(math.isnan, plot._smooth([math.nan] * 50)))
    figure = Figure()
    plot._mark_not_finite(figure.subplots(), list(enumerate(losses, 1)))
    (panel,) = figure.axes
    assert [list(line.get_xdata()) for line in panel.lines] == [[21, 31]]
    assert panel.texts[0].get_text() == "NaN or infinite at 2 steps, first at step 21"


def test_losses_that_are_not_finite_are_logged_without_a_word(tmp_path: Path, capfd, caplog) -> None:
    data = batches(4)
    data[2] = (data[2][0] * np.nan, data[2][1])
    fitted(trainer_of(kn.optim.sgd(lr=0.1)), data, log_dir=tmp_path)
    assert [math.isnan(value) for _, value in event_files.scalars(tmp_path)["loss"]] == [False, False, True, True]
    printed = capfd.readouterr()
    assert not caplog.records and not printed.out and not printed.err


def test_a_folder_s_name_is_no_formula_and_names_the_picture_as_asked(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a$b^$c_{"
    fitted(trainer_of(kn.optim.sgd(lr=0.1)), batches(3), log_dir=folder)
    assert command.main(["plot", str(folder), "--out", str(tmp_path / "picture")]) == 0
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    assert command.main(["plot", str(folder), "--out", str(tmp_path / "picture.svg")]) == 0
    assert b"<svg" in (tmp_path / "picture.svg").read_bytes()
