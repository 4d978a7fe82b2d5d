"""What the weights of a backbone demand: in the identity of runs and stages, and in the plan's remarks."""

from __future__ import annotations

import open_clip
import pytest
import torchvision
from safetensors.torch import save_file

from benchmarks.plan import grid, jobs
from benchmarks.plan.remarks import remarks
from methods.errors import UserError
from tests.plan import golden

CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Function from the lines of a [backbone] table to the jobs of a small grid; no weights are fetched."""
    monkeypatch.setattr(jobs, "weights_digest", lambda spec: "w" * 64)
    monkeypatch.setattr(jobs, "split_of", golden.split_of)

    def plan(backbone, methods=("zero_shot",), recipe="resolution = 224"):
        (tmp_path / "r.toml").write_text(f'description = "r"\n[backbone]\n{backbone}\n[recipe]\n{recipe}\n')
        names = ", ".join(f'"{name}"' for name in methods)
        (tmp_path / "g.toml").write_text(
            'description = "g"\ndatasets = ["glyphscenes"]\nratios = [0.05]\nseeds = [1]\n'
            f'methods = [{names}]\nrecipe = "{tmp_path / "r.toml"}"\n'
        )
        loaded = grid.load(str(tmp_path / "g.toml"))
        images = {
            (spec, size): golden.prepared(spec, size)
            for spec, sizes in loaded.datasets.items()
            for size in sizes
        }
        return jobs.jobs(loaded, images)

    return plan


def test_a_tag_stands_in_the_identity_with_what_it_demands(planned):
    (job,) = planned('name = "open_clip/RN101"\nweights = "openai"')
    backbone = job.spec.backbone
    assert backbone["quick_gelu"] is True
    assert (backbone["mean"], backbone["std"]) == (list(CLIP_MEAN), list(CLIP_STD))
    assert backbone["weights_sha256"] == "w" * 64
    assert "weights" not in backbone
    assert not [line for line in remarks([job]) if "RN101" in line]
    (same,) = planned('name = "open_clip/RN101"\nweights = "openai"\nquick_gelu = true')
    assert same.spec.run_id == job.spec.run_id  # what is written again is the same run
    with pytest.raises(UserError, match="quick_gelu = false contradicts the weights 'openai'"):
        planned('name = "open_clip/RN101"\nweights = "openai"\nquick_gelu = false')


def test_a_file_has_what_was_taken_in_the_identity_and_in_the_remarks(planned, tmp_path):
    file = tmp_path / "RN101.safetensors"
    save_file({}, file)
    table = f'name = "open_clip/RN101"\nweights = "{file}"'
    (job,) = planned(table)
    assert job.spec.backbone["quick_gelu"] is True
    (remark,) = [line for line in remarks([job]) if "RN101" in line]
    assert "quick_gelu = true" in remark
    assert "mean = [0.4815, 0.4578, 0.4082]" in remark
    (other,) = planned(f"{table}\nquick_gelu = false")
    assert other.spec.backbone["quick_gelu"] is False
    assert other.spec.run_id != job.spec.run_id
    with pytest.raises(UserError, match="give quick_gelu in"):
        planned(f'name = "open_clip/ViT-B-32"\nweights = "{file}"')


def test_stages_follow_what_the_weights_demand(planned, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({}, file)
    table = f'name = "open_clip/RN101"\nweights = "{file}"'
    recipe = "resolution = 224\nwarmup_epochs = 1\nepochs = 2"
    kinds = {}
    for choice in ("true", "false"):
        found = planned(f"{table}\nquick_gelu = {choice}", ("linear_probe", "fixmatch"), recipe)
        kinds[choice] = {stage.kind: stage.stage_id for job in found for stage in job.stages}
    assert set(kinds["true"]) == {"features", "warmup"}
    assert not set(kinds["true"].values()) & set(kinds["false"].values())


def test_plain_networks_have_no_activation_and_the_mean_of_their_weights(planned, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({}, file)
    (job,) = planned(f'name = "torchvision/efficientnet_v2_l"\nweights = "{file}"', ("linear_probe",))
    views = torchvision.models.EfficientNet_V2_L_Weights.DEFAULT.transforms()
    assert job.spec.backbone["quick_gelu"] is None
    assert job.spec.backbone["mean"] == views.mean == [0.5, 0.5, 0.5]
    with pytest.raises(UserError, match="give mean and std in"):
        planned(f'name = "torchvision/vgg16"\nweights = "{file}"', ("linear_probe",))
    (glyphclip,) = planned('name = "glyphclip"', recipe="resolution = 128")
    assert glyphclip.spec.backbone["quick_gelu"] is False
    assert glyphclip.spec.backbone["mean"] == list(CLIP_MEAN)
    assert glyphclip.spec.backbone["std"] == list(CLIP_STD)
