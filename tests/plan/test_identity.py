import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks.plan.identity import RunSpec, canonical, digest
from benchmarks.plan.recipe import Recipe, recipe_of
from methods.errors import UserError


def spec(**changes) -> RunSpec:
    base = RunSpec(
        dataset="scenes",
        dataset_digest="d" * 64,
        ratio=0.05,
        seed=1,
        split_digest="s" * 64,
        method="csaa",
        version=1,
        hyper={"temperature": 20.0},
        backbone={"name": "glyphclip"},
        recipe={"epochs": 3},
        label="full",
    )
    return dataclasses.replace(base, **changes)


def test_identity_follows_everything_that_can_change_the_number():
    reference = spec().run_id
    changes = {
        "dataset": "other",
        "dataset_digest": "e" * 64,
        "ratio": 0.1,
        "seed": 2,
        "split_digest": "t" * 64,
        "method": "fixmatch",
        "version": 2,
        "hyper": {"temperature": 1.0},
        "backbone": {"name": "open_clip/RN101"},
        "recipe": {"epochs": 4},
        "code": "c" * 64,
        "split_seed": 5,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(RunSpec)} - {"label", "budget"}
    ids = {spec(**{name: value}).run_id for name, value in changes.items()}
    assert len(ids) == len(changes)
    assert reference not in ids


def test_a_split_seed_that_is_the_seed_and_the_words_of_a_budget_change_nothing():
    assert spec(split_seed=1).run_id == spec(budget="200 images").run_id == spec().run_id
    record = spec(split_seed=5, budget="200 images").record()
    assert (record["split_seed"], record["budget"], record["seed"]) == (5, "200 images", 1)
    assert spec().record()["split_seed"] == 1
    title = spec(split_seed=5, budget="200 images").title
    assert title.startswith("full · scenes 200 images split=5 seed=1 [")


def test_label_and_key_order_are_not_in_the_identity():
    assert spec(label="another row").run_id == spec().run_id
    assert spec(recipe={"a": 1, "b": 2}).run_id == spec(recipe={"b": 2, "a": 1}).run_id


def test_the_methods_of_this_repository_have_no_code_in_their_identity():
    assert "code" not in spec().identity()
    assert spec(code="c" * 64).identity()["code"] == "c" * 64


def test_identity_is_the_same_in_another_process():
    program = "from tests.plan.test_identity import spec; print(spec().run_id)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == spec().run_id


def test_identity_survives_a_trip_through_json():
    identity = spec().identity()
    assert digest(json.loads(canonical(identity))) == spec().run_id


def test_a_recipe_contributes_only_what_its_kind_reads():
    pool = dataclasses.replace(Recipe(), batch_unlabelled=7, epochs=3)
    assert Recipe().relevant("fit") == pool.relevant("fit")
    assert Recipe().relevant("labelled") == pool.relevant("labelled")
    assert Recipe().relevant("semi") != pool.relevant("semi")
    longer = dataclasses.replace(Recipe(), labelled_epochs=99)
    assert Recipe().relevant("semi") == longer.relevant("semi")
    assert Recipe().relevant("labelled") != longer.relevant("labelled")
    batching = dataclasses.replace(Recipe(), eval_batch=3)
    assert Recipe().relevant("semi") == batching.relevant("semi")


@pytest.mark.parametrize("kind", ["labelled", "semi"])
def test_fields_of_an_average_that_is_not_kept_are_in_no_identity(kind):
    kept, none = (dataclasses.replace(Recipe(), ema_decay=decay) for decay in (0.9, 0.0))
    for change in ({"ema_warmup": False}, {"warmup_weights": "ema"}):
        other = dataclasses.replace(none, **change)
        assert (other.relevant(kind), other.warmup_part()) == (none.relevant(kind), none.warmup_part())
    for part in (none.relevant(kind), none.warmup_part()):
        assert not {"ema_warmup", "warmup_weights"} & part.keys()
        assert part["ema_decay"] == 0.0
    cold = dataclasses.replace(kept, ema_warmup=False)
    assert cold.relevant(kind) != kept.relevant(kind)
    assert cold.warmup_part() != kept.warmup_part()
    averaged = dataclasses.replace(kept, warmup_weights="ema")
    assert (averaged.relevant(kind) != kept.relevant(kind)) is (kind == "semi")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": "3"}, "'epochs' is '3', a str; it must be a int"),
        ({"precision": "fp8"}, "fp"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must lie in \[0, 1\)"),
        ({"schedule_epochs": 2, "epochs": 3}, "shorter than the 3 epochs"),
        ({"resolution": 0}, "resolution is 0"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(table, message):
    with pytest.raises(UserError, match=message) as caught:
        recipe_of(table, "grid.toml")
    assert "\n" not in str(caught.value)


def test_integers_are_floats_where_floats_are_wanted():
    recipe = recipe_of({"clip_norm": 1}, "grid.toml")
    assert recipe.clip_norm == 1.0
    assert isinstance(recipe.clip_norm, float)
