from dataclasses import replace

import pytest
import torch

from gptmill.device import Device, RuntimeConfig, pick
from tests.support.courses import RUNTIME


def test_auto_picks_what_is_there_and_records_it():
    device = pick(
        RuntimeConfig(
            device="auto", precision="auto", compile=False, micro_batch="auto", recompute=False
        )
    )
    assert device.device in ("cpu", "cuda", "mps")
    assert device.precision in ("fp32", "bf16")
    assert torch.are_deterministic_algorithms_enabled()
    names = "device model precision compile threads torch processes sharded recompute"
    assert device.record().keys() == set(names.split())
    assert device.record()["threads"] == torch.get_num_threads()
    assert all(isinstance(value, str | int) for value in device.record().values())


def test_a_choice_that_is_not_auto_is_kept():
    device = pick(
        RuntimeConfig(
            device="cpu", precision="fp32", compile=True, micro_batch="auto", recompute=False
        )
    )
    assert (device.device, device.precision, device.compile) == ("cpu", "fp32", True)


def test_batches_of_many_shapes_are_not_compiled() -> None:
    asked = replace(RUNTIME, device="cpu", compile=True)
    assert pick(asked).compile
    assert not pick(asked, one_shape=False).compile


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_computes_in_the_precision(precision, dtype):
    device = pick(replace(RUNTIME, precision=precision))
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_refused_by_name():
    with pytest.raises(ValueError, match=r"device is 'cuda', but this machine .* cpu"):
        pick(
            RuntimeConfig(
                device="cuda", precision="auto", compile=False, micro_batch="auto", recompute=False
            )
        )


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="device is 'tpu'; allowed are auto, cpu, cuda, mps"):
        RuntimeConfig(
            device="tpu", precision="auto", compile=False, micro_batch="auto", recompute=False
        )
    with pytest.raises(ValueError, match="precision is 'fp16'; allowed are auto, fp32, bf16"):
        RuntimeConfig(
            device="cpu", precision="fp16", compile=False, micro_batch="auto", recompute=False
        )


def test_a_device_is_a_plain_value():
    one = pick(RUNTIME)
    assert one == pick(RUNTIME)
    assert isinstance(one, Device)
