import pytest

from methods.errors import UserError, check_choice, check_range, nearest


def test_nearest_asks_and_lists():
    assert nearest("cssa", ["csaa", "dualcoop"]) == "; did you mean 'csaa'? (valid: csaa, dualcoop)"
    assert nearest("CSAA", ["csaa"]).startswith("; did you mean 'csaa'?")


def test_nearest_stays_silent_where_nothing_is_close():
    assert nearest("qqqq", ["csaa"]) == "; (valid: csaa)"
    assert nearest("anything", []) == ""


def test_long_lists_are_cut():
    names = [f"name{i:02d}" for i in range(40)]
    assert nearest("zzz", names).count("name") == 12


def test_checks_name_the_field():
    with pytest.raises(UserError, match=r"a\.loss: unknown value 'als'; did you mean 'asl'"):
        check_choice("a.loss", "als", ["asl", "bce"])
    with pytest.raises(UserError, match=r"clip: 2 is not allowed; it must be between 0 and 1"):
        check_range("clip", 2, 0, 1)
    with pytest.raises(UserError, match="at least 0"):
        check_range("lr", float("nan"), 0)
