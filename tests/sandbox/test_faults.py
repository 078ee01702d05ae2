"""The assignment of faults to requests."""

import random
from collections import Counter

import pytest

from loops_async.sandbox import FAULTS
from loops_async.sandbox._faults import Fault, FaultPlan


def draws(plan: FaultPlan, number: int) -> list[str | None]:
    return [fault.name if (fault := plan.draw()) else None for _ in range(number)]


def test_scripted_faults_come_in_order_before_random_faults() -> None:
    plan = FaultPlan({"502": 1.0}, random.Random(1))
    plan.extend(["close-after", None])
    plan.extend(["429"])
    assert draws(plan, 5) == ["close-after", None, "429", "502", "502"]


def test_a_plan_without_probabilities_yields_no_fault() -> None:
    assert draws(FaultPlan({}, random.Random(1)), 3) == [None] * 3


def test_random_faults_follow_the_probabilities_and_the_seed() -> None:
    probabilities = {"502": 0.3, "503": 0.2}
    first, second = (FaultPlan(probabilities, random.Random(7)) for _ in "ab")
    drawn = draws(first, 2_000)
    assert drawn == draws(second, 2_000)
    counts = Counter(drawn)
    assert counts["502"] == pytest.approx(600, abs=80)
    assert counts["503"] == pytest.approx(400, abs=80)


def test_only_a_scripted_fault_returns_to_the_plan() -> None:
    plan = FaultPlan({}, random.Random(1))
    plan.put_back(Fault("502", scripted=False))
    plan.put_back(Fault("html-after", scripted=True))
    assert draws(plan, 2) == ["html-after", None]


@pytest.mark.parametrize("name", ["nope", "", 502, ["502"]])
def test_a_script_with_an_unknown_fault_is_refused_as_a_whole(name: object) -> None:
    plan = FaultPlan({}, random.Random(1))
    with pytest.raises(ValueError, match="script: no fault is named"):
        plan.extend(["502", name])  # type: ignore[list-item]
    assert plan.draw() is None


def test_every_fault_has_a_description() -> None:
    assert len(FAULTS) == 16
    assert all(FAULTS.values())
