"""Which device to compute on, checked before work starts. torch is imported when it is needed."""

from ember.records.errors import EmberError


class NoDevice(EmberError):
    """A device that is not there or not known."""


def resolve(device: str) -> str:
    """The device to use: "cpu" or "cuda" (also "cuda:1"); "auto" takes CUDA where there is one.

    Raises `NoDevice` with the remedy for a CUDA device that is not there.
    """
    kind, _, index = device.partition(":")
    if device == "cpu":
        return "cpu"
    if device != "auto" and (kind != "cuda" or not (index.isdigit() or device == "cuda")):
        raise NoDevice(f"unknown device {device!r}\nchoose cpu, cuda, cuda:N or auto")

    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if count == 0:
        raise NoDevice(f"device {device} is asked for, but {_why_not(torch)}")
    if index and int(index) >= count:
        raise NoDevice(f"device {device} is asked for, but there are {count}\nchoose a lower one")
    return device


def device_name(device: str) -> str:
    """Name of the device, as the tables have it: the GPU's, or cpu."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


def synchronize(device: str) -> None:
    """Wait until the device has finished what it was given."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def _why_not(torch) -> str:
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built for the CPU\n"
            "install a CUDA build of torch, or choose device cpu (--config scale=tiny)"
        )
    return (
        "no CUDA device is visible\n"
        "run on a machine with a GPU (check nvidia-smi and CUDA_VISIBLE_DEVICES), "
        "or choose device cpu (--config scale=tiny)"
    )
