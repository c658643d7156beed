"""What an engine needs of a GPU to start, and what is used of several."""

from llmux.gpus.memory import GpuMemory, StartNeed, total_used_mib


def test_a_share_depends_on_the_gpu_and_an_amount_does_not() -> None:
    gpu = GpuMemory("GPU-a", 24_000, 1_000)
    assert gpu.free_mib == 23_000
    assert StartNeed(share=0.9).on(gpu) == 21_600
    assert StartNeed(mib=900).on(gpu) == 900


def test_used_of_all() -> None:
    assert total_used_mib([GpuMemory("a", 10, 3), GpuMemory("b", 10, 4)]) == 7
    assert total_used_mib([]) == 0
