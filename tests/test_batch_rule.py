"""SOLVER.BATCH_RULE: a recipe with another batch than it was made for."""

import pytest

from detectron2_ddetr.config import load_config
from detectron2_ddetr.config_rules import check_config
from detectron2_ddetr.engine.batch_rule import apply_batch_rule
from detectron2_ddetr.errors import InputError

from .conftest import CONFIGS, small_cfg
from .test_training import last_checkpoint, run, shapes  # noqa: F401


def recipe(batch, rule, **others):
    numbers = {"BASE_LR": 0.02, "BASE_LR_END": 0.002, "MAX_ITER": 1000, "STEPS": (300, 701),
               "WARMUP_ITERS": 50, "CHECKPOINT_PERIOD": 200, "REFERENCE_BATCH": 8,
               "IMS_PER_BATCH": batch, "BATCH_RULE": rule, **others}  # fmt: skip
    opts = [x for key, value in numbers.items() for x in (f"SOLVER.{key}", value)]
    cfg = small_cfg(*opts, "TEST.EVAL_PERIOD", 100)
    check_config(cfg)
    cfg.freeze()
    return cfg


def changes(before, after):
    pairs = {**{k: (v, after.SOLVER[k]) for k, v in before.SOLVER.items()}}
    pairs["EVAL_PERIOD"] = before.TEST.EVAL_PERIOD, after.TEST.EVAL_PERIOD
    return {key: new for key, (old, new) in pairs.items() if old != new}


@pytest.mark.parametrize("rule", ["keep", "scale", "accumulate"])
@pytest.mark.parametrize("batch, others", [(8, {}), (3, {"REFERENCE_BATCH": 0})])
def test_nothing_to_decide(rule, batch, others):
    cfg = recipe(batch, rule, **others)
    assert apply_batch_rule(cfg) == (cfg, "")


@pytest.mark.parametrize(
    "batch, rule, expected, says",
    [
        (2, "keep", {"REFERENCE_BATCH": 2}, "0.25 times the images of the recipe"),
        (2, "scale", {"REFERENCE_BATCH": 2, "BASE_LR": 0.005, "BASE_LR_END": 0.0005,
                      "MAX_ITER": 4000, "STEPS": (1200, 2804), "WARMUP_ITERS": 200,
                      "CHECKPOINT_PERIOD": 800, "EVAL_PERIOD": 400},
         "BASE_LR is 0.005 and MAX_ITER 4000 now"),
        (16, "scale", {"REFERENCE_BATCH": 16, "BASE_LR": 0.04, "BASE_LR_END": 0.004,
                       "MAX_ITER": 500, "STEPS": (150, 350), "WARMUP_ITERS": 25,
                       "CHECKPOINT_PERIOD": 100, "EVAL_PERIOD": 50}, "BASE_LR is 0.04"),
        (2, "accumulate", {"IMS_PER_BATCH": 8, "ACCUMULATION_STEPS": 4}, "of 8 in 4 passes"),
    ],
)  # fmt: skip
def test_each_rule(batch, rule, expected, says):
    before = recipe(batch, rule)
    after, said = apply_batch_rule(before)
    assert changes(before, after) == expected
    assert said.startswith(f"the recipe is for a batch of 8, this one is of {batch}: ")
    assert says in said and "\n" not in said and f"BATCH_RULE {rule}" in said or rule == "keep"
    # The config of the run, from which another may begin, is not changed again.
    assert apply_batch_rule(after) == (after, "")


def test_what_cannot_be():
    with pytest.raises(InputError, match=r"REFERENCE_BATCH \(8\) is no multiple.*IMS_PER_BATCH"):
        apply_batch_rule(recipe(3, "accumulate"))
    with pytest.raises(InputError, match="no multiple"):
        apply_batch_rule(recipe(16, "accumulate"))
    with pytest.raises(InputError, match="SOLVER.BATCH_RULE must be 'keep' or 'scale'"):
        recipe(8, "linear")
    with pytest.raises(InputError, match="SOLVER.REFERENCE_BATCH must be at least 0"):
        recipe(8, "keep", REFERENCE_BATCH=-1)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_says_its_batch(path):
    solver = load_config(str(path)).SOLVER
    assert solver.REFERENCE_BATCH == solver.IMS_PER_BATCH > 0


def test_in_a_training(shapes, tmp_path):  # noqa: F811
    """Half the batch: said, done, and the same again with --resume."""
    opts = ["SOLVER.REFERENCE_BATCH", 4, "SOLVER.BATCH_RULE", "scale", "SOLVER.MAX_ITER", 4]
    log = run(shapes, tmp_path, opts=[*opts, "SOLVER.BASE_LR", 2e-4])
    assert "BASE_LR is 0.0001 and MAX_ITER 8 now" in log
    trainer = last_checkpoint(tmp_path)["trainer"]
    assert trainer["iteration"] == 7 and trainer["images"] == 16
    again = ["SOLVER.MAX_ITER", 5, "SOLVER.BASE_LR", 2e-4]
    log = run(shapes, tmp_path, "--resume", opts=[*opts, *again])
    assert "resumed with another SOLVER.MAX_ITER: 8 before, 10 now" in log
    assert "resumed with another SOLVER.BASE_LR" not in log
