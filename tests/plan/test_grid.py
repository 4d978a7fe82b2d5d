"""Grids: which hyper-parameters, recipe and backbone each run gets, and what is refused while planning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.plan import grid, jobs
from methods.errors import UserError
from tests.plan import golden

GRID = """
datasets = ["voc2007", "coco2014"]
ratios = [0.05, 0.1]
seeds = [1]
methods = {methods}
recipe = "{recipe}"
{rest}
"""
RECIPE = """
backbone = "glyphclip"
[recipe]
epochs = 2
{rest}
"""


@pytest.fixture
def load(tmp_path):
    def read(rest: str = "", recipe: str = "", methods: str = '["fixmatch"]') -> grid.Grid:
        file = tmp_path / "recipe.toml"
        file.write_text(RECIPE.format(rest=recipe))
        path = tmp_path / "mine.toml"
        path.write_text(GRID.format(methods=methods, recipe=file, rest=rest))
        return grid.load(str(path))

    return read


def rates(found: grid.Grid) -> dict[tuple[str, float], float]:
    return {(cell.dataset.name, cell.ratio): cell.hyper.lr_head for cell in found.cells}


def test_vary_makes_a_row_of_every_combination(load):
    values = "loss = ['asl', 'bce'], scale = [5, 10]"
    entry = f"{{ name = 'fixmatch', label = 'F', hyper = {{ lr_head = 0.5 }}, vary = {{ {values} }} }}"
    found = [
        cell for cell in load(methods=f'[{entry}, "supervised"]').cells if cell.dataset.name == "voc2007"
    ]
    assert [(cell.label, cell.method) for cell in found[:5]] == [
        ("F (loss asl, scale 5)", "fixmatch"),
        ("F (loss asl, scale 10)", "fixmatch"),
        ("F (loss bce, scale 5)", "fixmatch"),
        ("F (loss bce, scale 10)", "fixmatch"),
        ("supervised", "supervised"),
    ]
    values = [(cell.hyper.loss, cell.hyper.scale, cell.hyper.lr_head) for cell in found[:4]]
    assert values == [("asl", 5.0, 0.5), ("asl", 10.0, 0.5), ("bce", 5.0, 0.5), ("bce", 10.0, 0.5)]


def test_a_varied_run_is_the_run_of_the_same_values(load):
    varied = load(methods='[{ name = "fixmatch", vary = { loss = ["bce"] } }]').cells
    plain = load(methods='[{ name = "fixmatch", hyper = { loss = "bce" } }]').cells
    assert [cell.hyper for cell in varied] == [cell.hyper for cell in plain]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("vary = { loss = [] }", r"vary.loss is \[\]; it must be a list of values"),
        ('vary = { loss = "bce" }', "vary.loss is 'bce'; it must be a list of values"),
        ('hyper = { loss = "asl" }, vary = { loss = ["bce"] }', "loss stands in `hyper` and in `vary`"),
        ('vary = { los = ["bce"] }', "did you mean 'loss'"),
        ('vary = { loss = ["bce", "bce"] }', "two methods are labelled 'fixmatch .loss bce.'"),
        ('vary = { loss = ["bcf"] }', "mine.toml, fixmatch .loss bcf.: .*bcf"),
        ('var = { loss = ["bce"] }', "did you mean 'vary'"),
    ],
)
def test_what_vary_refuses(load, keys, words):
    with pytest.raises(UserError, match=words):
        load(methods=f'[{{ name = "fixmatch", {keys} }}]')


LEVELS = tuple(
    (file, f"[{above}hyper.{section}]")
    for file in ("recipe", "grid")
    for above in ("", "dataset.coco2014.")
    for section in ("LinearMethod", "fixmatch")
)


@pytest.mark.parametrize("last", range(len(LEVELS)))
def test_hyper_parameters_by_dataset_have_the_precedence_of_recipe_fields(load, last):
    texts = {"recipe": "", "grid": ""}
    for k, (file, section) in enumerate(LEVELS[: last + 1]):
        texts[file] += f"{section}\nlr_head = 0.{k + 1}\n"
    found = rates(load(texts["grid"], texts["recipe"]))
    general = {0: 0.1, 1: 0.2, 2: 0.2, 3: 0.2, 4: 0.5}.get(last, 0.6)
    assert {found["voc2007", ratio] for ratio in (0.05, 0.1)} == {general}
    assert {found["coco2014", ratio] for ratio in (0.05, 0.1)} == {(last + 1) / 10}


def test_a_section_of_all_classifiers_reaches_those_and_no_other(load):
    rest = "[hyper.LinearMethod]\nlr_backbone = 0.25"
    found = load(rest, methods='["supervised", "cap", "em", "csaa", "dualcoop", "linear_probe"]')
    by_method = {cell.method: getattr(cell.hyper, "lr_backbone", None) for cell in found.cells}
    assert by_method == {
        "supervised": 0.25,
        "cap": 0.25,
        "em": 0.25,
        "csaa": 1e-5,
        "dualcoop": None,
        "linear_probe": None,
    }
    with pytest.raises(UserError, match=r"mine.toml, supervised: .*'lr_backbones'"):
        load("[hyper.LinearMethod]\nlr_backbones = 1", methods='["supervised"]')
    with pytest.raises(UserError, match=r"\[hyper.LinearMethods\]: unknown; did you mean 'LinearMethod'"):
        load("[hyper.LinearMethods]\nlr_backbone = 1.0")


def test_the_row_counts_more_than_everything(load):
    row = '[{ name = "fixmatch", hyper = { lr_head = 0.9 } }]'
    rest = "[dataset.coco2014.hyper.fixmatch]\nlr_head = 0.5"
    assert set(rates(load(rest, methods=row)).values()) == {0.9}


def test_hyper_parameters_by_dataset_leave_the_recipe_and_other_methods_alone(load):
    rest = "[dataset.coco2014]\nepochs = 7\n[dataset.coco2014.hyper.fixmatch]\nlr_head = 0.5"
    found = load(rest, methods='["fixmatch", "supervised"]')
    for cell in found.cells:
        coco = cell.dataset.name == "coco2014"
        assert cell.recipe.epochs == (7 if coco else 2)
        assert (cell.hyper.lr_head == 0.5) == (coco and cell.method == "fixmatch")


def test_a_hyper_parameter_may_depend_on_the_ratio(load):
    rest = '[dataset.coco2014.hyper.fixmatch]\nlr_head = { "0.05" = 0.5, default = 0.25 }'
    found = rates(load(rest))
    assert (found["coco2014", 0.05], found["coco2014", 0.1]) == (0.5, 0.25)
    with pytest.raises(UserError, match=r"^mine.toml, fixmatch: lr_head is given for ratios \[0.05\] and"):
        load('[hyper.fixmatch]\nlr_head = { "0.05" = 0.5 }')
    with pytest.raises(UserError, match=r"^mine.toml, fixmatch: lr_head is a table, so its keys are ratios"):
        load("[hyper.fixmatch]\nlr_head = { low = 0.5 }")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("[dataset.coco2014.hyper.fixmath]\na = 1", r"\[dataset.coco2014.hyper.fixmath\]: .*'fixmatch'"),
        (
            "[dataset.coco2014]\nhyper = 1",
            r"hyper is 1; write \[dataset.coco2014.hyper.NAME\]",
        ),
        (
            "[dataset.coco2014.hyper]\nfixmatch = 1",
            r"coco2014.hyper.fixmatch is 1; it must be a table",
        ),
        ("[dataset.coco2014.hyper.fixmatch]\nlr_heads = 1", r", fixmatch: .*'lr_heads'; did you mean"),
        (
            "[dataset.coco2014]\nepoch = 1",
            r"no field 'epoch'; did you mean 'epochs'",
        ),
        ("hyper = 1", r"hyper is 1; write \[hyper.NAME\]"),
    ],
)
def test_wrong_sections_are_one_line(load, rest, message):
    with pytest.raises(UserError, match=f"^mine.toml.*{message}") as caught:
        load(rest)
    assert "\n" not in str(caught.value)


# -- backbones ---------------------------------------------------------------------------------


PLAIN = 'backbone = { name = "torchvision/resnet50", pool = "max" }'


def test_a_row_may_have_a_backbone_of_its_own(load):
    rows = f'["zero_shot", "fixmatch", {{ name = "fixmatch", label = "ResNet-50", {PLAIN} }}]'
    cells = load(methods=rows).cells[:3]
    assert [cell.backbone.name for cell in cells] == ["glyphclip", "glyphclip", "torchvision/resnet50"]
    assert cells[2].backbone.pool == "max"


def test_rows_with_backbones_of_their_own_need_none_of_the_grid(tmp_path, load):
    load()
    (tmp_path / "recipe.toml").write_text("[recipe]\nepochs = 2\n")
    path = tmp_path / "mine.toml"
    row = '{ name = "supervised", backbone = "torchvision/resnet50" }'
    path.write_text(GRID.format(methods=f"[{row}]", recipe=tmp_path / "recipe.toml", rest=""))
    assert {cell.backbone.name for cell in grid.load(str(path)).cells} == {"torchvision/resnet50"}
    text = GRID.format(methods=f'[{row}, "fixmatch"]', recipe=tmp_path / "recipe.toml", rest="")
    path.write_text(text)
    with pytest.raises(UserError, match="neither the grid nor its recipe names a backbone"):
        grid.load(str(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (f'["fixmatch", {{ name = "fixmatch", {PLAIN} }}]', "two methods are labelled 'fixmatch'; give each"),
        (f'[{{ name = "zero_shot", {PLAIN} }}]', "'zero_shot' needs a vision-language .*, not 'torchvision/"),
        (
            '[{ name = "fixmatch", backbone = "glyphclp" }]',
            "unknown backbone 'glyphclp'; did you mean",
        ),
        (
            '[{ name = "fixmatch", backbone = { name = "glyphclip", weight = "x" } }]',
            "mine.toml, fixmatch: .*a backbone has no key 'weight'; did you mean 'weights'",
        ),
        (
            '[{ name = "fixmatch", backbone = { name = "timm/vit", mean = [0, 0] } }]',
            r"mean is \[0, 0\]; it must be a list of 3 numbers",
        ),
        ('[{ name = "fixmatch", bakbone = "x" }]', "a method has no key 'bakbone'; did you mean 'backbone'"),
        ('[{ name = "fixmatch", label = 1 }]', "label is 1; it must be a text"),
    ],
)
def test_wrong_rows_are_one_line(load, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        load(methods=rows)
    assert "\n" not in str(caught.value)


def planned(found: grid.Grid, monkeypatch) -> list[jobs.Job]:
    monkeypatch.setattr(jobs, "weights_digest", lambda spec: f"{spec.name}-{spec.weights}")
    monkeypatch.setattr(jobs, "split_of", golden.split_of)
    images = {
        (spec, size): golden.prepared(spec, size) for spec, sizes in found.datasets.items() for size in sizes
    }
    return jobs.jobs(found, images)


def test_runs_that_differ_in_the_backbone_share_nothing(load, monkeypatch):
    rows = f'["fixmatch", {{ name = "fixmatch", label = "ResNet-50", {PLAIN} }}]'
    first, second = planned(load(methods=rows), monkeypatch)[:2]
    assert first.spec.run_id != second.spec.run_id
    assert first.stages[0].stage_id != second.stages[0].stage_id
    assert second.spec.backbone["weights_sha256"] == "torchvision/resnet50-"


# -- hyper-parameters and task -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            '[{ name = "csaa", label = "wide", hyper = { num_contexts = 41 } }]',
            "mine.toml, wide on voc2007: num_contexts is 41; with 40 labels it must lie between 2 and 40",
        ),
        ('[{ name = "csaa", hyper = { num_contexts = 1 } }]', "num_contexts is 1; with 40 labels"),
        (
            f'[{{ name = "supervised", hyper = {{ init = "text" }}, {PLAIN} }}]',
            "mine.toml, supervised on voc2007: init = 'text' needs a text tower, torchvision/resnet50 has",
        ),
        (
            '[{ name = "dualcoop", backbone = "open_clip/ViT-B-32" }]',
            "mine.toml, dualcoop on voc2007: dualcoop.locations = 'code' needs an attention-pool .*ViT-B-32",
        ),
    ],
)
def test_hyper_parameters_that_cannot_work_on_the_task_end_the_plan(load, monkeypatch, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        planned(load(methods=rows), monkeypatch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        '{ name = "csaa", hyper = { num_contexts = 50, context_weight = 0.0 } }',
        '{ name = "csaa", hyper = { num_contexts = 40 } }',
        '{ name = "dualcoop", backbone = "open_clip/RN101" }',
        '{ name = "dualcoop", hyper = { locations = "plain" }, backbone = "open_clip/ViT-B-32" }',
        '{ name = "supervised", hyper = { init = "text" } }',
        '{ name = "linear_probe" }',
    ],
)
def test_hyper_parameters_that_work_are_planned(load, monkeypatch, row):
    assert len(planned(load(methods=f"[{row}]"), monkeypatch)) == 4


def with_few_classes_on_coco(monkeypatch, count: int) -> None:
    real = golden.prepared

    def prepared(spec, size):
        found = real(spec, size)
        if spec.name == "coco2014":
            few = found.dataset.classes[:count]
            found.dataset = SimpleNamespace(**{**vars(found.dataset), "classes": few})
        return found

    monkeypatch.setattr(golden, "prepared", prepared)


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_the_number_of_contexts_is_resolved_for_each_dataset(load, monkeypatch, classes):
    with_few_classes_on_coco(monkeypatch, classes)
    jobs = planned(load(methods='["csaa"]'), monkeypatch)
    # In the identity of the run and of its warm-up is the number, not that it was left out.
    found = {job.spec.dataset: job.spec.identity()["hyper"]["num_contexts"] for job in jobs}
    assert found == {"voc2007": 10, "coco2014": classes}
    assert {job.spec.dataset: job.stages[0].key["hyper"]["num_contexts"] for job in jobs} == found


def test_a_number_of_contexts_that_is_written_is_the_resolved_one(load, monkeypatch):
    rows = ('["csaa"]', '[{ name = "csaa", hyper = { num_contexts = 10 } }]')
    automatic, written = (planned(load(methods=row), monkeypatch) for row in rows)
    assert [job.spec.run_id for job in automatic] == [job.spec.run_id for job in written]


@pytest.mark.parametrize(
    ("classes", "hyper", "message"),
    [
        (1, "", "csaa on coco2014: num_contexts: .* one label only; set context_weight = 0"),
        (
            5,
            "num_contexts = 10",
            "csaa on coco2014: num_contexts is 10; with 5 labels it must lie between 2 and 5",
        ),
        (5, "num_contexts = -1", "num_contexts is -1; with 40 labels it must lie between 2 and 40"),
    ],
)
def test_impossible_contexts_end_the_plan(load, monkeypatch, classes, hyper, message):
    with_few_classes_on_coco(monkeypatch, classes)
    with pytest.raises(UserError, match=message) as caught:
        planned(load(methods=f'[{{ name = "csaa", hyper = {{ {hyper} }} }}]'), monkeypatch)
    assert "\n" not in str(caught.value)


def test_one_class_is_planned_without_contexts(load, monkeypatch):
    with_few_classes_on_coco(monkeypatch, 1)
    row = '[{ name = "csaa", hyper = { context_weight = 0.0 } }]'
    assert len(planned(load(methods=row), monkeypatch)) == 4


def test_planning_is_imported_without_torch():
    import subprocess
    import sys

    code = "import sys, benchmarks.plan.jobs; assert not {'torch', 'open_clip'} & set(sys.modules)"
    root = Path(grid.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
