from pathlib import Path

import pytest

from llmux.simulation.engine.faults import Fault, Faults


def test_a_fault_strikes_always_or_a_number_of_times() -> None:
    faults = Faults(["sleep-500", "wake-500:2"])
    assert [faults.strikes(Fault.SLEEP_500) for _ in range(4)] == [True] * 4
    assert [faults.strikes(Fault.WAKE_500) for _ in range(4)] == [True, True, False, False]
    assert not faults.strikes(Fault.RELOAD_500)


def test_a_fault_can_depend_on_a_file(tmp_path: Path) -> None:
    present = tmp_path / "present"
    present.touch()
    faults = Faults([f"start-exit:7@{present}", f"start-hang@{tmp_path / 'absent'}"])
    assert list(faults.active()) == [Fault.START_EXIT]
    assert faults.argument(Fault.START_EXIT, "1") == "7"


def test_faults_can_be_switched_on_and_off() -> None:
    faults = Faults()
    faults.switch(Fault.WAKE_HANG, True)
    assert Fault.WAKE_HANG in faults
    faults.switch(Fault.WAKE_HANG, False)
    assert Fault.WAKE_HANG not in faults


@pytest.mark.parametrize("specification", ["", "nonsense", "sleep-500:x", "wake-500:0", "die-on-request:5"])
def test_wrong_specifications_are_refused(specification: str) -> None:
    with pytest.raises(ValueError, match="fault"):
        Faults([specification])
