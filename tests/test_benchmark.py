"""tools/benchmark.py: both sides read the same tensors in turn, and nothing is invented."""

import csv
import importlib.util
import platform
import re
import sys
import types

import pytest
import torch

from .conftest import CONFIGS, ROOT

spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools" / "benchmark.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

NODE = "MODEL.DETR."
COMMON = [
    # fmt: off
    "--config-file", str(CONFIGS / "quick_start.yaml"), "--image-size", "64", "96",
    "--num-boxes", "3", "--batch-size", "2", "--repeat", "3", "--warmup", "1",
]
SMALL = [
    NODE + "HIDDEN_DIM",
    "32",
    NODE + "DIM_FEEDFORWARD",
    "32",
    NODE + "NUM_QUERIES",
    "5",
    NODE + "ENC_LAYERS",
    "1",
    NODE + "DEC_LAYERS",
    "1",
    "MODEL.DEVICE",
    "cpu",
    # fmt: on
]


@pytest.fixture
def peer(monkeypatch):
    """A peer that records what it is given; `spoil` makes it write into its images."""
    module = types.ModuleType("recording_peer")
    module.calls, module.spoil, module.loss = [], False, 1.0

    def build(description):
        module.description = description

        def train_step(images, targets):
            module.calls.append(("train", images, targets))
            if module.spoil:
                images[0].zero_()
            return module.loss

        return train_step, lambda images: module.calls.append(("infer", images))

    module.build = build
    monkeypatch.setitem(sys.modules, "recording_peer", module)
    return module


def rows(text):
    table = [row.split("|")[1:-1] for row in text.splitlines() if row[:1] == "|"]
    return [[cell.strip() for cell in row] for row in table]


def test_the_table_without_a_peer(capsys):
    """What was not measured stays empty."""
    benchmark.main([*COMMON, *SMALL])
    text = capsys.readouterr().out
    header, infer, train = rows(text)
    assert len(header) == len(train) == len(infer) == 8
    for row, what in ((train, "training step, batch 2"), (infer, "inference, batch 1")):
        assert row[:2] == ["quick_start", f"{what}, 64x96"]
        assert float(row[2].split()[0]) > 0
        assert row[3] == row[4] == row[6] == ""
        assert torch.__version__ in row[7] and "3 turns" in row[7]
    assert "6 boxes" in text and "operator" in text


def test_the_peer_reads_what_the_model_reads(peer, capsys):
    benchmark.main([*COMMON, "--markdown", "--peer", "recording_peer:build", *SMALL])
    infer, train = rows(capsys.readouterr().out)
    assert all(train[2:5]) and all(infer[2:5])
    # One call to check, then one of warm-up and three timed; at most one more for the memory.
    kinds = [call[0] for call in peer.calls]
    assert kinds.count("infer") in (5, 6) and kinds.count("train") in (5, 6)
    assert kinds == sorted(kinds), "inference is that of a process which has not trained"

    config = peer.description["config"]
    assert config["MODEL"]["DETR"]["HIDDEN_DIM"] == 32
    cfg = benchmark.load_config(peer.description["config_file"], peer.description["opts"])
    assert cfg.dump() == config.dump()
    batch = benchmark.synthetic_batch(cfg, (64, 96), 3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    (_, [first]), (_, images, targets) = peer.calls[0], peer.calls[-1]
    assert len(images) == len(targets) == 2
    for x, image, target in zip(batch, images, targets):
        torch.testing.assert_close(image, (x["image"] - mean) / std)
        assert torch.equal(target["labels"], x["instances"].gt_classes)
        centre, size = target["boxes"].split(2, dim=1)
        corners = torch.cat((centre - size / 2, centre + size / 2), 1)
        corners *= torch.tensor([96, 64, 96, 64])
        torch.testing.assert_close(corners, x["instances"].gt_boxes.tensor)
    assert first is images[0]


def test_a_peer_of_mixed_precision_stays_float32(peer, capsys):
    """It is what is measured beside ours, and not our own model in float32."""
    arguments = [*COMMON, "--markdown", "--peer", "recording_peer:build", *SMALL]
    benchmark.main([*arguments, "SOLVER.AMP.ENABLED", "True"])
    train, infer = rows(capsys.readouterr().out)
    assert all(train[2:5]) and all(infer[2:5])
    assert len(peer.calls) > 6 and peer.calls[0][1][0].dtype == torch.float32


def test_inference_is_not_training():
    opts = [*SMALL, "SOLVER.IMS_PER_BATCH", "2", "MODEL.BACKBONE.FREEZE_AT", "0"]
    cfg = benchmark.load_config(COMMON[1], opts)
    model = benchmark.Trainer.build_model(cfg)
    before = [p.clone() for p in model.parameters()]
    train_step, infer = benchmark.our_functions(cfg, model)
    batch = benchmark.synthetic_batch(cfg, (64, 96), 3)
    infer(batch)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters()))
    assert train_step(batch) > 0
    assert not all(torch.equal(p, q) for p, q in zip(before, model.parameters()))


def test_frozen_layers_are_timed_with_random_weights(capsys):
    """Which a training would refuse."""
    benchmark.main([*COMMON, *SMALL, "MODEL.BACKBONE.FREEZE_AT", "2"])
    assert len(rows(capsys.readouterr().out)) > 1


def test_the_sides_take_turns():
    order = []
    ticks = iter(range(100))
    sides = {name: lambda name=name: order.append(name) for name in ("ours", "peer")}
    seconds = benchmark.measure(sides, 3, 2, lambda: next(ticks), torch.device("cpu"))
    assert order == ["ours", "peer"] * 5
    assert seconds == {"ours": [1, 1, 1], "peer": [1, 1, 1]}


def test_the_ratio_is_the_median_of_paired_ratios():
    """Not the ratio of the medians, which would be 3 / 2 here."""
    cells = benchmark.summary({"ours": [2.0, 3.0, 8.0], "peer": [1.0, 3.0, 2.0]})
    assert cells["ours, s"] == [3.0, 2.0, 8.0]
    assert cells["ours / peer"] == [2.0, 1.0, 4.0]
    assert benchmark.markdown(cells).startswith("| 3.000 [2.000, 8.000] | 2.000 ")


def test_several_configs_and_their_csv(tmp_path, capsys):
    """One heading; a file named by processor, threads and torch has the numbers of the rows."""
    two = [COMMON[1], str(CONFIGS / "dino" / "quick_start_dino.yaml")]
    files = [word for path in two for word in ("--config-file", path)]
    arguments = [*files, *COMMON[2:], "--threads", "1", "--csv", str(tmp_path)]
    arguments += ["--repeat", "1", "--warmup", "0"]
    for _ in range(2):  # the second run adds to the file
        benchmark.main([*arguments, *SMALL])
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table].count("config") == 2
    (path,) = tmp_path.iterdir()
    assert path.stem.endswith(re.sub("[^A-Za-z0-9.]+", "_", f"1 threads torch {torch.__version__}"))
    found = list(csv.DictReader(path.open()))
    named = [(row[0], row[1]) for row in table if row[0] != "config"]
    assert [(row["config"], row["what"]) for row in found] == named and len(found) == 8
    for row in found:
        assert 0 < float(row["ours, s, least"]) <= float(row["ours, s, median"])
        assert row["peer, s, median"] == "" and "1 turns" in row["how"]


def test_a_peer_that_changes_its_inputs_is_not_timed(peer):
    peer.spoil = True
    with pytest.raises(SystemExit, match="same images"):
        benchmark.main([*COMMON, "--peer", "recording_peer:build", *SMALL])


def test_a_loss_that_is_not_finite_is_not_timed(peer):
    peer.loss = float("nan")
    with pytest.raises(SystemExit, match="not finite"):
        benchmark.main([*COMMON, "--peer", "recording_peer:build", *SMALL])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")
def test_peak_memory_sees_a_temporary():
    peak = benchmark.peak_extra_mib(lambda: torch.ones(64, 2**20).sum(), torch.device("cpu"))
    assert 250 < peak < 320  # 256 MiB


def test_real_images_come_from_the_training_set(capsys):
    arguments = [*COMMON[:2], "--batch-size", "1", "--repeat", "1", "--warmup", "0", *SMALL]
    benchmark.main([*arguments, "INPUT.MIN_SIZE_TRAIN", "(60,)"])
    assert ", 60x" in rows(capsys.readouterr().out)[1][1]
