import importlib.util
import sys
from pathlib import Path

import torch

import methods
from methods import registry

TEMPLATE = Path(__file__).parents[2] / "docs" / "method_template.py"


def test_the_template_is_a_method_that_trains_and_the_scan_does_not_take_it(
    load, task, make_batch, monkeypatch
):
    assert "template" not in methods.available()
    warm_up = methods.hyper("supervised")  # outside: what is first imported inside is forgotten at the end
    with registry.isolated():
        spec = importlib.util.spec_from_file_location("method_template", TEMPLATE)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "method_template", module)  # dataclasses look it up
        spec.loader.exec_module(module)
        method = methods.create("template", backbone=load(), task=task, confidence=0.51)
        batch = make_batch()
        with torch.no_grad():
            p = torch.sigmoid(method.predict(batch.weak_unlabelled))
        output = method(batch)
        assert torch.equal(output.pseudo_labels.targets, (p >= 0.5).float())
        assert torch.equal(output.pseudo_labels.mask, ((p - 0.5).abs() >= 0.01).float())
        sum(output.losses.values()).backward()
        assert method.classifier.weight.grad is not None
        assert type(method).warmup_hyper(method.hyper) == warm_up
