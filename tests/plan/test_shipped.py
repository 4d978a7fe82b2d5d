"""What the shipped recipes and grids promise: one protocol for all rows, and CAP's to the letter."""

from __future__ import annotations

import dataclasses

import pytest

import methods
from benchmarks.plan import grid, jobs
from tests.plan import golden


@pytest.fixture
def cells(monkeypatch):
    monkeypatch.setenv("SSMLL_TEST_DATA", "/data")
    monkeypatch.setenv("SSMLL_RN50", "/data/resnet50.pth")
    return lambda name: grid.load(name).cells


def rates(found, field="lr_backbone"):
    return {getattr(cell.hyper, field) for cell in found if hasattr(cell.hyper, field)}


FROZEN = {
    "zero_shot",
    "linear_probe",
    "dualcoop",
    *("dualcoop_pp", "positivecoop", "negativecoop", "vision_only", "tai_dpt"),
    *("clip_adapter", "tip_adapter", "clap", "clip_lora"),
}
"""Methods that leave the image tower as it is."""


def test_every_method_of_full_trains_the_image_tower_at_one_rate(cells):
    found = [cell for cell in cells("full") if hasattr(cell.hyper, "lr_backbone")]
    assert {cell.method for cell in found} == set(methods.available()) - FROZEN
    assert len({repr(cell.backbone) for cell in found}) == 1
    assert rates(found) == {3e-5}


UNSEARCHED = {
    *("dualcoop_pp", "positivecoop", "negativecoop", "vision_only", "scpnet", "tai_dpt"),
    *("clip_adapter", "tip_adapter", "clap", "clip_lora"),
}
"""Methods of the grid `vlm` whose settings were not searched on GlyphScenes-dev."""


@pytest.mark.parametrize("name", ["smoke", "full"])
def test_every_method_is_in_the_grids_of_all_methods(cells, name):
    assert {cell.method for cell in cells(name)} == set(methods.available())


def test_every_method_is_in_the_field_or_among_the_unsearched(cells):
    assert {cell.method for cell in cells("field")} == set(methods.available()) - UNSEARCHED
    assert {cell.method for cell in cells("vlm")} >= UNSEARCHED


def test_the_search_tried_as_many_settings_of_every_method_and_the_recipe_has_one_of_them(cells):
    tried = {}
    for cell in cells("field-dev"):
        assert cell.dataset.name == "glyphscenes-dev"  # never the test images that tables show
        tried.setdefault(cell.method, []).append(cell.hyper)
    assert set(tried) == set(methods.available()) - {"zero_shot"} - UNSEARCHED  # zero_shot trains nothing
    assert {len(found) for found in tried.values()} == {5}
    for found in tried.values():
        assert len(set(map(repr, found))) == len(found)
    for name in ("field", "embedded", "demo"):
        for cell in cells(name):
            assert cell.method == "zero_shot" or cell.hyper in tried[cell.method]


def test_the_search_of_contexts_has_as_many_settings_as_that_of_every_method(cells):
    found = cells("contexts-dev")
    assert {cell.dataset.name for cell in found} == {"glyphscenes-dev"}
    assert len({repr(cell.hyper) for cell in found}) == len(found) == 5
    assert not {repr(cell.hyper) for cell in cells("field-dev")} & {repr(cell.hyper) for cell in found}


def test_the_classifiers_are_crossed_with_rules_whose_settings_do_not_depend_on_them(cells):
    found = [cell for cell in cells("classifiers") if cell.method != "csaa"]
    kinds = {"linear", "aligned", "dualcoop"}
    crossed = {(cell.method, cell.hyper.classifier, cell.seed) for cell in found}
    assert len(found) == len(crossed) == 4 * 3 * 3
    assert {kind for _, kind, _ in crossed} == kinds
    for cell in found:
        (label, kind), hyper = cell.label.split(" × "), cell.hyper
        assert (label, kind) == (cell.method, hyper.classifier)
        plain = next(each.hyper for each in found if each.label == f"{label} × linear")
        own = {name for name in hyper.shared() if getattr(hyper, name) != getattr(plain, name)}
        assert own <= {"classifier", "context_words", "negative_words", "spatial_temperature"}
    field = {(cell.method, repr(cell.hyper)) for cell in cells("field")}
    assert {(cell.method, repr(cell.hyper)) for cell in found if cell.hyper.classifier == "linear"} <= field


def test_full_has_cap_s_rules_for_single_datasets(cells, monkeypatch):
    found = cells("full")
    starts = {cell.dataset.name: cell.recipe.warmup_weights for cell in found}
    assert starts == {"voc2012": "model", "coco2014": "model", "nuswide": "ema"}
    assert all(cell.recipe.ema_warmup and cell.recipe.ema_decay == 0.9997 for cell in found)
    monkeypatch.setattr(jobs, "weights_digest", lambda spec: "w" * 64)
    monkeypatch.setattr(jobs, "split_of", golden.split_of)
    loaded = grid.load("full")
    images = {
        (spec, size): golden.prepared(spec, size) for spec, sizes in loaded.datasets.items() for size in sizes
    }
    contexts = {
        job.spec.dataset: job.spec.identity()["hyper"]["num_contexts"]
        for job in jobs.jobs(loaded, images)
        if job.spec.method == "csaa"
    }
    assert contexts == {"voc2012": 4, "coco2014": 10, "nuswide": 10}


def test_cap_rn50_is_the_published_protocol(cells):
    found = cells("cap-rn50")
    assert {(cell.method, cell.seed) for cell in found} == {("supervised", 1), ("cap", 1), ("fixmatch", 1)}
    for cell in found:
        backbone, hyper, recipe = cell.backbone, cell.hyper, cell.recipe
        assert (backbone.name, tuple(backbone.mean), tuple(backbone.std)) == (
            "torchvision/resnet50",
            (0.0, 0.0, 0.0),
            (1.0, 1.0, 1.0),
        )
        assert (hyper.head, hyper.freeze_bn, hyper.lr_backbone, hyper.lr_head) == (
            "linear",
            False,
            1e-4,
            1e-4,
        )
        assert (hyper.optimizer, hyper.schedule, hyper.weight_decay) == ("adamw", "onecycle", 1e-4)
        assert (hyper.loss, hyper.gamma_pos, hyper.gamma_neg, hyper.clip) == ("asl", 0.0, 4.0, 0.05)
        assert (recipe.ema_decay, recipe.ema_warmup, recipe.evaluate) == (0.9997, False, "both")
        assert (recipe.warmup_epochs, recipe.epochs, recipe.schedule_epochs) == (12, 28, 40)
        assert recipe.labelled_epochs == 12  # the published row for the labelled images is the warm-up's
        assert recipe.warmup_view == "strong-no-cutout"
        halved = 2 if cell.dataset.name == "voc2012" else 1
        share = round(cell.ratio / 0.05)
        assert recipe.batch_labelled * halved == 4 * share
        assert (recipe.batch_labelled + recipe.batch_unlabelled) * halved == 64
        assert recipe.batch_warmup == 16 * share
        assert recipe.warmup_weights == ("ema" if cell.dataset.name == "nuswide" else "model")


def test_cap_starts_from_the_warm_up_that_supervised_is_there(cells, monkeypatch):
    monkeypatch.setattr(jobs, "weights_digest", lambda spec: "w" * 64)
    monkeypatch.setattr(jobs, "split_of", golden.split_of)
    loaded = grid.load("cap-rn50")
    images = {
        (spec, size): golden.prepared(spec, size) for spec, sizes in loaded.datasets.items() for size in sizes
    }
    found = jobs.jobs(loaded, images)
    warm_ups = {}
    for job in found:
        if job.spec.method in ("cap", "fixmatch"):
            (stage,) = job.stages
            warm_ups.setdefault((job.spec.dataset, job.spec.ratio), set()).add(stage.stage_id)
    assert len(warm_ups) == 12
    assert all(len(stages) == 1 for stages in warm_ups.values())  # computed once
    for cell in cells("cap-rn50"):
        if cell.method == "cap":
            assert (cell.hyper.eta_pos, cell.hyper.eta_neg, cell.hyper.unlabelled_weight) == (1.0, 0.998, 1.0)


def test_papers_numbers_for_datasets_are_in_both_recipes(tmp_path, monkeypatch):
    monkeypatch.setenv("SSMLL_RN50", "/data/resnet50.pth")
    for recipe in ("cap", "cap-rn50"):
        file = tmp_path / f"{recipe}.toml"
        file.write_text(
            'description = "own"\ndatasets = ["voc2007", "voc2012", "coco2014", "nuswide"]\nratios = [0.05]\n'
            f'seeds = [1]\nmethods = ["top_k", "em", "cap"]\nrecipe = "{recipe}"\n'
        )
        found = {(cell.method, cell.dataset.name): cell.hyper for cell in grid.load(str(file)).cells}
        ks = [found["top_k", name].k for name in ("voc2007", "voc2012", "coco2014", "nuswide")]
        alphas = [found["em", name].alpha for name in ("voc2007", "voc2012", "coco2014", "nuswide")]
        assert (ks, alphas) == ([2, 2, 3, 2], [0.2, 0.2, 0.1, 0.1])
        assert len({hyper.lr_backbone for hyper in found.values()}) == 1


def test_full_has_the_numbers_of_vision_language_methods_for_datasets(cells):
    found = {(cell.method, cell.dataset.name): cell.hyper for cell in cells("full")}
    for name, classes, k, kept, rest in (
        ("voc2012", 20, 5, 20, (10.0, 0.3, 2.0, 2e-4)),
        ("coco2014", 80, 2, 62, (10.0, 0.2, 1.0, 1e-5)),
        ("nuswide", 81, 6, 50, (100.0, 0.2, 1.0, 1e-4)),
    ):
        hyper = found["scpnet", name]
        assert (hyper.k, round(hyper.kept * classes)) == (k, kept)
        assert (hyper.scale, hyper.temperature, hyper.relation_weight, hyper.lr_graph) == rest
    scales = [found["tai_dpt", name].location_scale for name in ("voc2012", "coco2014", "nuswide")]
    assert scales == [40.0, 40.0, 4.0]


def test_dicap_s_own_recipe_is_its_code_s(monkeypatch, tmp_path):
    monkeypatch.setenv("SSMLL_RN50", "/data/resnet50.pth")
    file = tmp_path / "own.toml"
    file.write_text(
        'description = "own"\ndatasets = ["voc2012", "coco2014"]\nratios = [0.05, 0.10, 0.15, 0.20]\n'
        'seeds = [1]\nmethods = ["dicap"]\nrecipe = "dicap"\n'
    )
    for cell in grid.load(str(file)).cells:
        hyper, recipe, voc = cell.hyper, cell.recipe, cell.dataset.name == "voc2012"
        share = round(cell.ratio / 0.05)
        assert recipe.batch_warmup == int(0.8 * 16 * share)
        assert recipe.batch_labelled == int(0.8 * 32)
        assert recipe.batch_unlabelled * (2 if voc else 1) == 64 - 4 * share
        assert (recipe.warmup_epochs, recipe.epochs, recipe.schedule_epochs) == (12, 28, 40)
        assert (recipe.ema_decay, recipe.ema_warmup, recipe.warmup_view) == (
            0.9997,
            False,
            "strong-no-cutout",
        )
        assert (hyper.optimizer, hyper.schedule, hyper.weight_decay) == ("adamw", "onecycle", 1e-4)
        assert (hyper.lr_backbone, hyper.lr_head, hyper.freeze_bn) == (1e-4, 1e-4, False)
        assert (hyper.estimation_share, hyper.bins, hyper.repair) == (0.2, 20, "cubic" if voc else "monotone")
        assert (hyper.gamma_pos, hyper.gamma_neg, hyper.clip) == (0.0, 4.0, 0.05)
        assert hyper.warmup_unlabelled == 128 - 16  # at 5 %


def own_cells(monkeypatch, tmp_path, recipe, method):
    monkeypatch.setenv("SSMLL_RN50", "/data/resnet50.pth")
    file = tmp_path / "own.toml"
    file.write_text(
        'description = "own"\ndatasets = ["voc2012", "coco2014", "nuswide"]\n'
        f'ratios = [0.05, 0.10, 0.15, 0.20]\nseeds = [1]\nmethods = ["{method}"]\nrecipe = "{recipe}"\n'
    )
    return grid.load(str(file)).cells


def test_d2l_s_own_recipe_is_its_code_s(monkeypatch, tmp_path):
    for cell in own_cells(monkeypatch, tmp_path, "d2l", "d2l"):
        hyper, recipe = cell.hyper, cell.recipe
        halved = 2 if cell.dataset.name == "voc2012" else 1
        share = round(cell.ratio / 0.05)
        assert (recipe.batch_labelled * halved, recipe.batch_unlabelled * halved) == (
            4 * share,
            64 - 4 * share,
        )
        assert recipe.batch_warmup == 16 * share
        assert (recipe.warmup_epochs, recipe.epochs, recipe.schedule_epochs) == (12, 28, 40)
        assert (recipe.ema_decay, recipe.ema_warmup, recipe.warmup_weights) == (0.9997, False, "model")
        assert (hyper.head, hyper.freeze_bn, hyper.lr_backbone, hyper.lr_head) == (
            "linear",
            False,
            1e-4,
            1e-4,
        )
        assert (hyper.grid, hyper.pairs, hyper.thresholds, hyper.beta) == (2, "decoupled", "mat", 0.5)
        assert (hyper.gamma_pos, hyper.gamma_neg, hyper.clip) == (0.0, 4.0, 0.05)


def test_abl_s_own_recipe_is_its_code_s(monkeypatch, tmp_path):
    for cell in own_cells(monkeypatch, tmp_path, "abl", "abl"):
        hyper, recipe, voc = cell.hyper, cell.recipe, cell.dataset.name == "voc2012"
        assert recipe.batch_labelled == max(int(64 * cell.ratio), 4)
        assert recipe.batch_labelled + recipe.batch_unlabelled == 64
        assert recipe.batch_warmup == 32
        assert (recipe.warmup_epochs, recipe.epochs, recipe.schedule_epochs) == (12, 28, 0)  # it anneals
        assert recipe.warmup_weights == ("ema" if cell.dataset.name == "nuswide" else "model")
        assert (hyper.gamma_neg, hyper.clip, hyper.clip_unlabelled, hyper.power) == (4, 0.2, 0.05, 2.0)
        warm = methods.get("abl").warmup_hyper(hyper)
        assert (warm.gamma_neg, warm.clip) == (10 if voc else 4, 0.2)


def test_cap_s_second_model_differs_from_the_first_in_its_head_alone(monkeypatch, tmp_path):
    one, two = (own_cells(monkeypatch, tmp_path, name, "cap") for name in ("cap-rn50", "cap-mlder"))
    for first, second in zip(one, two, strict=True):
        assert first.recipe == second.recipe
        assert first.backbone == second.backbone
        assert dataclasses.replace(second.hyper, head="linear") == first.hyper
        assert second.hyper.head == "ml_decoder"


def test_dualcoop_s_own_recipe_keeps_no_average(monkeypatch, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        'description = "own"\ndatasets = ["voc2007"]\nratios = [0.1]\nseeds = [1]\nmethods = ["dualcoop"]\n'
        'recipe = "dualcoop"\n'
    )
    (cell,) = grid.load(str(file)).cells
    assert cell.recipe.ema_decay == 0.0
