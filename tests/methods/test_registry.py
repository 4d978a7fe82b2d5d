import dataclasses
import importlib
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest

import methods
from methods import registry
from methods.backbones import BackboneSpec, load_backbone
from methods.base import FitMethod, StepMethod
from methods.errors import UserError


@dataclass(frozen=True)
class MineHyper:
    """Nothing."""

    size: int = 3


BUILT_IN = ("csaa", "dualcoop", "fixmatch", "linear_probe", "supervised", "zero_shot")


@pytest.fixture(autouse=True)
def _own_registry():
    for name in BUILT_IN:  # a module registers once, when it is first imported
        methods.get(name)
    with registry.isolated():
        yield


def make(name, base=FitMethod, module="elsewhere.mine"):
    body = {"name": name, "Hyper": MineHyper, "__module__": module}
    return type("Mine", (base,), body)


def test_built_in_methods_are_listed_without_importing_torch():
    code = "import sys, methods; print(methods.available()); assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for name in BUILT_IN:
        assert repr(name) in run.stdout


NOT_INSTALLED = """
import sys
import importlib.metadata
real = importlib.metadata.entry_points
ours = {'group': 'ssmll_bench.methods'}
importlib.metadata.entry_points = lambda **asked: () if asked == ours else real(**asked)
import methods
"""
CSAA_IS_THERE = """
assert 'csaa' in methods.available()
assert 'csaa' not in sys.modules and 'torch' not in sys.modules
assert methods.get('csaa').__module__ == 'csaa.method'
"""


@pytest.mark.parametrize(
    "code",
    [
        CSAA_IS_THERE,
        "methods.registry.declared_in = lambda checkout, group: {}\n"
        "assert 'csaa' not in methods.available()\nimport benchmarks" + CSAA_IS_THERE,
    ],
    ids=["its own entry points", "benchmarks"],
)
def test_a_checkout_that_is_not_installed_has_csaa(code):
    run = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED + code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_declarations_are_names_that_may_be_repeated_and_not_taken(tmp_path, monkeypatch):
    registry.declare("new", "no_such_module")
    registry.declare("new", "no_such_module")
    assert "new" in methods.available()
    with pytest.raises(UserError, match=r"^other: the method name 'new' is taken by no_such_module"):
        registry.declare("new", "other")
    with pytest.raises(UserError, match=r"'fixmatch' is taken by methods\.fixmatch"):
        registry.declare("fixmatch", "other")
    (tmp_path / "empty_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.declare("absent", "empty_module")
    with pytest.raises(UserError, match="'absent': empty_module was imported and does not register it"):
        methods.get("absent")


def test_isolation_undoes_registrations():
    with registry.isolated():
        methods.register(make("mine"))
        registry.declare("declared", "elsewhere")
        assert {"mine", "declared"} <= set(methods.available())
    assert not {"mine", "declared"} & set(methods.available())


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_methods_carry_their_own_name_and_a_frozen_hyper(name):
    cls = methods.get(name)
    assert cls.name == name
    assert cls.Hyper.__dataclass_params__.frozen
    assert issubclass(cls, StepMethod | FitMethod)
    fields = {field.name for field in dataclasses.fields(cls.Hyper)}
    documented = " ".join(base.__doc__ or "" for base in cls.Hyper.__mro__)
    assert all(f"{field}:" in documented for field in fields), "undocumented hyper-parameter"


def test_unknown_method_names_the_nearest():
    with pytest.raises(UserError, match="unknown method 'cssa'; did you mean 'csaa'"):
        methods.get("cssa")


def test_unknown_hyper_parameter_names_the_nearest():
    with pytest.raises(
        UserError, match="method 'fixmatch': unknown hyper-parameter 'lr_heads'; did you mean 'lr_h"
    ):
        methods.hyper("fixmatch", lr_heads=1.0)


def test_hyper_values_from_a_file_equal_the_python_ones():
    assert methods.hyper("fixmatch", lr_head=1) == methods.hyper("fixmatch", lr_head=1.0)
    assert isinstance(methods.hyper("fixmatch", lr_head=1).lr_head, float)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"lr_head": "big"}, r"fixmatch\.lr_head: expected float, got 'big' \(str\)"),
        ({"lr_head": True}, r"fixmatch\.lr_head: expected float"),
        ({"freeze_bn": 1}, r"fixmatch\.freeze_bn: expected bool"),
        ({"loss": "als"}, r"fixmatch\.loss: unknown value 'als'; did you mean 'asl'"),
        ({"positive": 0.01}, "negative <= 0.5 <= positive"),
        ({"lr_backbone": -1.0}, "lr_backbone: -1 is not allowed"),
    ],
)
def test_wrong_values_are_one_clear_line(override, message):
    with pytest.raises(UserError, match=message) as error:
        methods.hyper("fixmatch", **override)
    assert "\n" not in str(error.value)


def test_decorator_registers_a_third_party_class(task, load):
    cls = methods.register(make("mine"))
    assert "mine" in methods.available()
    assert methods.get("mine") is cls
    assert methods.create("mine", backbone=load(), task=task, size=5).hyper.size == 5


def test_duplicate_names_raise():
    registry.declare("csaa", "csaa.method")
    methods.register(make("mine"))
    with pytest.raises(UserError, match=r"'mine' is taken by elsewhere\.mine"):
        methods.register(make("mine"))
    for name, module in (("csaa", "csaa.method"), ("fixmatch", "methods.fixmatch")):
        with pytest.raises(UserError, match=rf"{name!r} is taken by {module}"):
            methods.register(make(name))


def test_registering_the_same_class_again_is_harmless():
    cls = make("mine")
    assert methods.register(cls) is methods.register(cls)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (type("Nameless", (FitMethod,), {"Hyper": MineHyper}), "class attribute 'name'"),
        (type("Foreign", (), {"name": "foreign", "Hyper": MineHyper}), "derives from"),
        (type("Bare", (FitMethod,), {"name": "bare", "Hyper": dict}), "frozen dataclass 'Hyper'"),
    ],
)
def test_classes_that_are_no_methods_are_refused(cls, message):
    with pytest.raises(UserError, match=message):
        methods.register(cls)


def install(tmp_path, monkeypatch, entry, code):
    """A distribution with one entry point and one module on sys.path."""
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ssmll_bench.methods]\n{entry}\n")
    (tmp_path / "thirdparty_module.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "thirdparty_module", raising=False)


METHOD = """
    from dataclasses import dataclass
    from methods import register
    from methods.base import FitMethod

    @dataclass(frozen=True)
    class Hyper:
        depth: int = 1

    {decorator}
    class Theirs(FitMethod):
        name = "theirs"
        Hyper = Hyper
"""


@pytest.mark.parametrize("decorator", ["", "@register"])
def test_entry_points_of_installed_packages_are_methods(tmp_path, monkeypatch, decorator):
    code = METHOD.format(decorator=decorator)
    install(tmp_path, monkeypatch, "theirs = thirdparty_module:Theirs", code)
    assert "theirs" in methods.available()
    assert "thirdparty_module" not in sys.modules  # listing loads nothing
    assert methods.get("theirs").__module__ == "thirdparty_module"
    assert methods.hyper("theirs", depth=4).depth == 4


@pytest.mark.parametrize(("name", "module"), [("csaa", "csaa.method"), ("fixmatch", "methods.fixmatch")])
def test_entry_point_that_takes_a_built_in_name_raises(name, module, tmp_path, monkeypatch):
    registry.declare("csaa", "csaa.method")
    install(tmp_path, monkeypatch, f"{name} = thirdparty_module:Theirs", METHOD.format(decorator=""))
    with pytest.raises(UserError, match=f"thirdparty_module:Theirs and {module}"):
        methods.available()


def test_entry_point_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "theirs = thirdparty_module:Theirs", "import no_such_module")
    with pytest.raises(UserError, match="cannot load its entry point 'thirdparty_module:Theirs'"):
        methods.get("theirs")


def test_entry_point_under_another_name_raises(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "other = thirdparty_module:Theirs", METHOD.format(decorator=""))
    with pytest.raises(UserError, match="points to a method named 'theirs'"):
        methods.get("other")


def test_methods_that_need_texts_refuse_an_image_only_backbone(task):
    backbone = load_backbone(BackboneSpec("torchvision/squeezenet1_1"), 64)
    for name in ("zero_shot", "dualcoop"):
        with pytest.raises(UserError, match=f"'{name}' needs a vision-language backbone"):
            methods.create(name, backbone=backbone, task=task)


def test_construction_is_reproducible_and_leaves_the_generator_alone(task, load):
    import torch

    torch.manual_seed(5)
    before = torch.get_rng_state()
    states = [
        methods.create("supervised", backbone=load(), task=task, init="random").state_dict() for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
