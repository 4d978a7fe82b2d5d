"""Labelling budgets and split seeds in grids: the cells, the values of recipes, the runs and their table."""

import csv

import pytest

from benchmarks.plan.grid import load, restrict
from methods.errors import UserError
from results.store import RunStore
from tests.conftest import grid_text


@pytest.fixture
def written(tmp_path, voc_root):
    """Function from lines of a grid to its path; the methods are fitted in a moment."""

    def write(ratios: str, more: str = "", methods: str = '["linear_probe", "zero_shot"]', **recipe: object):
        text = grid_text(voc_root, methods, **recipe).replace("ratios = [0.5]", f"ratios = {ratios}\n{more}")
        path = tmp_path / "grid.toml"
        path.write_text(text)
        return path

    return write


def test_split_seeds_cross_the_seeds_and_without_them_the_seed_is_both(written):
    crossed = load(str(written("[0.5]", "split_seeds = [7, 8]").absolute())).cells
    assert {(cell.split_seed, cell.subset_seed, cell.seed) for cell in crossed} == {(7, 7, 1), (8, 8, 1)}
    plain = load(str(written("[0.5]").absolute())).cells
    assert {(cell.split_seed, cell.subset_seed, cell.seed) for cell in plain} == {(None, 1, 1)}


def test_values_by_ratio_are_looked_up_by_the_budget_and_never_by_a_share_that_is_near(written):
    values = '{ "0.5" = 3, "40 images" = 4, "2 per class" = 5, default = 9 }'
    path = written('[0.5, "40 images", "41 images", "2 per class"]', batch_warmup=values)
    found = {cell.budget or cell.ratio: cell.recipe.batch_warmup for cell in load(str(path)).cells}
    assert found == {0.5: 3, "40 images": 4, "41 images": 9, "2 per class": 5}
    path = written('["41 images"]', batch_warmup='{ "0.5" = 3 }')
    with pytest.raises(UserError, match=r"batch_warmup is given for ratios \[0.5\] and not for 41 images"):
        load(str(path))
    path = written("[0.5]", batch_warmup='{ "many" = 3, default = 1 }')
    with pytest.raises(UserError, match="batch_warmup is a table, so its keys are ratios: ratio 'many'"):
        load(str(path))


def test_a_part_of_a_grid_is_named_by_budgets_too(written):
    grid = load(str(written('[0.5, "40 images"]')))
    assert {cell.budget for cell in restrict(grid, ["40 images"], [], []).cells} == {"40 images"}
    assert {cell.ratio for cell in restrict(grid, [0.5], [], []).cells} == {0.5}
    with pytest.raises(UserError, match="has no ratio '41 images'; did you mean '40 images'"):
        restrict(grid, ["41 images"], [], [])


def test_a_part_of_a_grid_is_named_by_its_splits(written):
    crossed = load(str(written("[0.5]", "split_seeds = [7, 8]").absolute()))
    part = restrict(crossed, split_seeds=[8])
    assert {(cell.split_seed, cell.seed) for cell in part.cells} == {(8, 1)}
    with pytest.raises(UserError, match=r"grid 'grid' has no split seed 1; \(valid: 7, 8\)"):
        restrict(crossed, split_seeds=[1])
    with pytest.raises(UserError, match="has no seed 7"):
        restrict(crossed, seeds=[7])
    path = written("[0.5]")
    path.write_text(path.read_text().replace("seeds = [1]", "seeds = [1, 2]"))
    plain = load(str(path))
    assert {cell.seed for cell in restrict(plain, split_seeds=[2]).cells} == {2}
    with pytest.raises(UserError, match="no run has one of the seeds 1 and one of the split seeds 2"):
        restrict(plain, seeds=[1], split_seeds=[2])


@pytest.mark.parametrize(
    ("ratios", "more", "message"),
    [
        ("[20]", "", "grid.toml: ratio 20 is outside .* write '20 images'"),
        ('["20 pictures"]', "", "grid.toml: ratio '20 pictures'; it must be a share"),
        ("[0.5]", "split_seeds = []", "'split_seeds' must be a list with at least one entry"),
        ("[0.5]", "split_seed = 1", "no key 'split_seed'; did you mean 'split_seeds'"),
    ],
)
def test_what_is_wrong_is_named(written, ratios, more, message):
    with pytest.raises(UserError, match=message):
        load(str(written(ratios, more)))


def test_runs_of_every_budget_stand_in_one_table(command, written):
    path = written('[0.5, "30 images", "2 per class"]', "split_seeds = [1, 2]")
    out, _ = command("--grid", str(path), "--no-plots")
    assert "30 images" in out
    assert "2 per class" in out
    assert "over training seeds 1 on splits 1, 2" in out
    store = RunStore(command.runs / "store")
    results = [store.load(run) for run in store.scan()]
    specs = [result["spec"] for result in results]
    assert len(results) == 12
    keys = [(spec.get("budget", ""), spec["split_seed"]) for spec in specs]
    splits = {key: result["split"] for key, result in zip(keys, results, strict=True)}
    assert splits["30 images", 1]["labelled"] == splits["30 images", 2]["labelled"] == 30
    for budget, rule, sees in (("2 per class", "2-per-class", True), ("", "published", False)):
        assert (splits[budget, 1]["rule"], splits[budget, 1]["sees_hidden_labels"]) == (rule, sees)
    assert "Labelled images drawn by 2-per-class: a rule that looked at the labels of all" in out
    digests = {spec["split_digest"] for spec in specs}
    assert len(digests) == 6
    names = {file.name.split("-p0.")[0] for file in (command.data / "splits").rglob("*.json")}
    assert names == {"published", "2-per-class"}
    (table,) = command.runs.glob("tables/*/mAP-last.csv")
    rows = list(csv.DictReader(table.open()))
    assert {row["budget"] for row in rows} == {"", "30 images", "2 per class"}
    assert {row["n"] for row in rows} == {"2"}
    again, _ = command("tables", "--grid", str(path), "--ratios", "30 images")
    assert "30 images" in again
    assert "2 per class" not in again
    command("splits", "verify")
