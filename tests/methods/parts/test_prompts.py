import copy

import pytest
import torch
from torch.nn import functional as F

from methods.errors import UserError
from methods.parts.prompts import LearntPrompts, encode_together, templates_of, text_classifier

NAMES = ("cat", "traffic light", "xylophone player")


def test_context_of_real_words_encodes_as_the_full_text(load):
    # Reference without cutting and joining: the same words as one string.
    vlm = load()
    prompts = LearntPrompts(vlm, NAMES, words="a photo of a")
    expected = vlm.encode_text([f"a photo of a {name}." for name in NAMES])
    assert prompts.context.shape == (4, 32)
    assert torch.allclose(prompts(), expected, atol=1e-5)


@pytest.mark.parametrize("row", [1024, 10])
@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit-qk", "tiny-bidirectional"])
def test_learnt_context_equals_full_length_evaluation(load, monkeypatch, name, row):
    monkeypatch.setattr("methods.parts.prompts.LONGEST_ROW", row)
    vlm = load(name)
    prompts = LearntPrompts(vlm, NAMES, length=5, seed=2)
    # The names fit into one sequence, or need several because a row has a maximum length.
    assert len(prompts.trees) == (0 if name == "tiny-bidirectional" else 1 if row == 1024 else 3)
    tower = vlm.text_tower
    # Full-length reference: placeholder tokens, embedded, with the context written over them.
    ids, end = tower.tokenise([f"{'x ' * 5}{n}." for n in NAMES])
    embedded = tower.token_embedding(ids).clone()
    context = prompts.context.detach().clone().requires_grad_()
    embedded[:, 1:6] = context
    x = embedded + tower.positional_embedding
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    picked = x[:, -1] if tower.pool == "last" else x[torch.arange(3), end]
    expected = picked @ tower.text_projection
    assert torch.allclose(prompts(), expected, atol=1e-5)
    weights = torch.randn(expected.shape)
    (prompts() * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(prompts.context.grad, context.grad, atol=1e-5)


def test_shared_and_class_specific_contexts(load):
    vlm = load()
    shared = LearntPrompts(vlm, NAMES, length=16, seed=1)
    own = LearntPrompts(vlm, NAMES, length=16, class_specific=True, seed=1)
    assert shared.context.shape == (16, 32)
    assert own.context.shape == (3, 16, 32)
    assert shared().shape == own().shape == (3, 24)
    assert float(own.context.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(shared.context, LearntPrompts(vlm, NAMES, length=16, seed=1).context)
    assert not torch.equal(shared.context, LearntPrompts(vlm, NAMES, length=16, seed=2).context)
    words = LearntPrompts(vlm, NAMES, words="a photo of", class_specific=True)
    assert words.context.shape == (3, 3, 32)


def test_only_the_context_is_trained_and_the_model_is_not_owned(load):
    vlm = load()
    prompts = LearntPrompts(vlm, NAMES, length=4)
    assert [name for name, _ in prompts.named_parameters()] == ["context"]
    assert set(prompts.state_dict()) == {"context"}
    prompts().square().sum().backward()
    assert prompts.context.grad.abs().sum() > 0
    assert all(p.grad is None for p in vlm.parameters())


def test_scores_without_gradients_follow_the_context(load):
    vlm = load()
    prompts = LearntPrompts(vlm, NAMES, length=4)
    with torch.no_grad():
        first = prompts()
        assert prompts() is first  # from the cache
        prompts.context.data.add_(0.5)  # an update that leaves no trace in the version counter
        second = prompts()
    assert not torch.allclose(first, second)
    assert torch.allclose(second, prompts().detach(), atol=1e-6)


def test_copies_do_not_share_what_they_remember(load):
    vlm = load()
    model = torch.nn.ModuleDict({"vlm": vlm, "prompts": LearntPrompts(vlm, NAMES, length=4)})
    with torch.no_grad():
        before = model["prompts"]().clone()
        other = copy.deepcopy(model)
        assert other["prompts"]._vlm[0] is other["vlm"]
        other["prompts"].context.add_(1)
        assert not torch.allclose(other["prompts"](), before)
        assert torch.equal(model["prompts"](), before)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        # Equal layouts; class-specific contexts; unequal layouts.
        ([{"length": 3}, {"length": 3, "seed": 1}], 1),
        ([{"length": 3, "class_specific": True}, {"length": 9, "class_specific": True}], 1),
        ([{"length": 3}, {"length": 9}], 2),
        ([{"length": 3}, {"length": 3, "class_specific": True}], 2),
    ],
)
def test_several_prompts_in_as_few_passes_as_possible(load, options, passes):
    vlm = load()
    first, second = (LearntPrompts(vlm, NAMES, **some) for some in options)
    done = []
    hook = vlm.text.ln_final.register_forward_hook(lambda *_: done.append(1))
    together = encode_together([first, second])
    assert len(done) == passes
    hook.remove()
    for found, prompts in zip(together, (first, second), strict=True):
        assert torch.allclose(found, prompts(), atol=1e-5)


def test_a_shared_context_is_read_once_for_all_names(load):
    vlm = load()
    prompts = LearntPrompts(vlm, NAMES, length=16)
    seen = []
    first = vlm.text.transformer.resblocks[0]
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    prompts()
    # Of each name: its words, a full stop and an end token.
    lengths = [int(end) - 16 for end in prompts.end]
    assert seen == [(1, 17 + sum(lengths), 32)]
    assert sum(lengths) < 3 * max(lengths)


def test_prompts_that_do_not_fit_are_refused(load):
    with pytest.raises(UserError, match="'xylophone player' make a prompt of at least"):
        LearntPrompts(load(), NAMES, length=73)
    with pytest.raises(UserError, match="at least 1 context token"):
        LearntPrompts(load(), NAMES, length=0)


def test_text_classifier_averages_unit_features_over_templates(load):
    vlm = load()
    templates = templates_of("simple7")
    assert len(templates) == 7
    assert len(templates_of("imagenet80")) == 80
    each = torch.stack(
        [
            torch.stack([F.normalize(vlm.encode_text([t.format(n)])[0], dim=0) for t in templates])
            for n in NAMES
        ]
    )
    expected = F.normalize(each.mean(dim=1), dim=1)
    assert torch.allclose(text_classifier(vlm, NAMES, templates), expected, atol=1e-5)
