"""What the plan says of the moving average: how much of the start is left in the reported model."""

from benchmarks.plan.average import Training, phase_trainings, remarks, training_steps, trainings_of
from benchmarks.plan.recipe import Recipe
from methods.phases import Phase


def test_the_published_decay_without_a_warm_up_is_named_with_the_share():
    # VOC2012 at 5 %: 285 labelled images in batches of 16, 40 epochs.
    fixed = Recipe(ema_warmup=False)
    steps = training_steps(fixed, "labelled", 285, 0)
    assert steps == 720
    (line,) = remarks([Training("supervised", "voc2012", steps, fixed), Training("x", "y", 90_000, fixed)])
    assert line == (
        "supervised on voc2012: up to 81% of the starting weights remain in the reported moving average "
        "(720 steps, ema_decay = 0.9997, ema_warmup = false)"
    )


def test_of_several_ratios_the_shortest_training_is_named():
    fixed = Recipe(ema_warmup=False)
    (line,) = remarks([Training("a", "d", steps, fixed) for steps in (5000, 1000, 3000)])
    assert "up to 74%" in line
    assert "(1000 steps" in line


def test_a_warmed_up_average_forgets_its_start_and_one_line_says_so():
    steps = training_steps(Recipe(), "semi", 285, 5432)
    assert steps == 28 * 91  # 5432 images in batches of 60
    lines = remarks([Training("csaa", "voc2012", steps, Recipe())])
    assert lines == ["moving averages: less than 0.5% of the starting weights remain in any"]


def test_nothing_is_said_where_nothing_is_averaged():
    assert training_steps(Recipe(), "fit", 285, 5432) == 0
    assert (
        remarks([Training("zero_shot", "d", 0, Recipe()), Training("a", "d", 9, Recipe(ema_decay=0.0))]) == []
    )


def test_a_warm_up_whose_average_is_the_start_is_named_too():
    # NUS-WIDE at 5 % with CAP's fixed decay: 7500 labelled images in batches of 16, 12 epochs.
    recipe = Recipe(ema_warmup=False, warmup_weights="ema")
    found = trainings_of("fixmatch", "nuswide", recipe, "semi", 7500, 142_500, True)
    assert [one.steps for one in found] == [28 * 2375, 12 * 469]
    (line,) = remarks(found)
    assert line == (  # .9997 ** 5628 is 0.185
        "fixmatch on nuswide: up to 18% of the starting weights remain in the warm-up's moving average, "
        "where it starts (5628 steps, ema_decay = 0.9997, ema_warmup = false)"
    )
    raw = Recipe(ema_warmup=False)
    assert len(trainings_of("fixmatch", "nuswide", raw, "semi", 7500, 142_500, True)) == 1
    assert len(trainings_of("fixmatch", "nuswide", recipe, "semi", 7500, 142_500, False)) == 1


def test_each_phase_has_its_own_average_and_a_short_last_one_is_named():
    recipe = Recipe(ema_warmup=False)
    phases = (
        Phase("warmup", "warmup", epoch_over="labelled", batch_unlabelled=112),
        Phase("main"),
        Phase("finetune", labelled="estimation", pool=False, epochs=20, batch_labelled=64),
    )
    found = phase_trainings("dicap", "coco2014", recipe, phases, (3283, 821, 78_798))
    assert [one.steps for one in found] == [12 * 206, 28 * 1314, 20 * 13]
    lines = remarks(found)
    # 0.9997 to the power of 260 and 2,472.
    assert any(
        "92% of the starting weights remain in the reported moving average of phase 'finetune'" in x
        for x in lines
    )
    assert any(
        "48% of the starting weights remain in the moving average of phase 'warmup'" in x for x in lines
    )
    assert len(lines) == 2
