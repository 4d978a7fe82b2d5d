import pytest
import torch

import methods
from methods.errors import UserError
from tests.methods.table import GOLDEN, gradients_of, numbers, same, step_of

INPUTS = GOLDEN["inputs"]
LABELLED, UNLABELLED = 3 * 4, 5 * 4


@pytest.mark.parametrize("run", GOLDEN["pseudo_label"]["runs"], ids=lambda run: str(run["p_cutoff"]))
def test_a_step_is_that_of_usb_on_binary_problems(run):
    # microsoft/Semi-supervised-learning at 1ef4cbe, run on B·K examples with the logits (0, z). Its ramp is
    # t/0.4T where ours is (t + 1)/0.4T: the step before.
    method, batch = step_of(
        "pseudo_label",
        INPUTS,
        step=run["it"] - 1,
        total=run["num_train_iter"],
        loss="bce",
        confidence=run["p_cutoff"],
        unlabelled_weight=3 / 5,
    )
    output = method(batch)
    same(output.pseudo_labels.mask.flatten(), run["masking"][0])
    same(output.pseudo_labels.targets.flatten(), run["gen_ulb_targets"][0])
    same(sum(output.losses.values()) / LABELLED, run["loss"])
    found = gradients_of(method, batch, output)
    for view, gradient in found.items():
        same(gradient / LABELLED, run["gradient"][view])
    assert found["weak_unlabelled"].any()
    assert not found["strong_unlabelled"].any()


def test_with_every_entry_used_a_step_is_that_of_mlssl_simple():
    # ytaek-oh/mlssl-simple at 027be6c, run; it has no ramp.
    run = GOLDEN["pseudo_label_mlssl"]["runs"][0]
    method, batch = step_of("pseudo_label", INPUTS, loss="bce", ramp=0, positive=0.5, negative=0.5)
    output = method(batch)
    assert output.pseudo_labels.mask.all()
    same(output.losses["labelled"] / LABELLED, run["l_loss"])
    same(output.losses["unlabelled"] / UNLABELLED, run["ul_loss"])
    found = gradients_of(method, batch, output)
    same(found["weak_unlabelled"] / UNLABELLED, run["gradient"]["weak_unlabelled"])


def test_with_a_pair_entries_have_the_gradients_of_mlssl_simple_up_to_its_means():
    # It averages an image's used entries, then the images that have any.
    run = GOLDEN["pseudo_label_mlssl"]["runs"][1]
    method, batch = step_of("pseudo_label", INPUTS, loss="bce", ramp=0, positive=0.9, negative=0.1)
    output = method(batch)
    used = output.pseudo_labels.mask.sum(dim=1, keepdim=True)
    assert int((used > 0).sum()) > 0
    assert len(set(used.flatten().tolist())) > 1
    found = gradients_of(method, batch, output)["weak_unlabelled"]
    same(found / used.clamp(min=1) / (used > 0).sum(), run["gradient"]["weak_unlabelled"])


def test_the_weight_rises_over_the_first_part_of_the_training():
    sizes = []
    for step in (0, 3, 7, 8, 19):
        method, batch = step_of("pseudo_label", INPUTS, step=step, total=20)
        sizes.append(method(batch).losses["unlabelled"].item())
    whole = sizes[-1]
    assert whole > 0
    assert [size / whole for size in sizes] == pytest.approx([1 / 8, 4 / 8, 1, 1, 1])


def test_the_network_sees_each_image_once_and_its_labels_carry_no_gradient():
    method, batch = step_of("pseudo_label", INPUTS)
    seen = []
    method.classifier.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    output = method(batch)
    assert seen == [8]
    assert not output.pseudo_labels.targets.requires_grad
    assert not output.pseudo_labels.mask.requires_grad


def test_between_one_half_and_the_cutoff_nothing_is_trained():
    method, batch = step_of("pseudo_label", INPUTS)
    found = gradients_of(method, batch, method(batch))["weak_unlabelled"]
    p = torch.sigmoid(numbers(INPUTS["weak_unlabelled"]))
    between = (p >= 0.5) & (p < 0.95)
    assert between.any()
    assert not found[between].any()


def test_a_ramp_longer_than_the_training_is_refused():
    with pytest.raises(UserError, match=r"ramp: 1\.5 is not allowed"):
        methods.hyper("pseudo_label", ramp=1.5)
