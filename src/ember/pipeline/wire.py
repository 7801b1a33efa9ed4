"""Messages between two stages: hidden states forward, sampled tokens back, both asynchronous.

Contract. Messages of one direction arrive in the order they were sent; each direction has a process
group of its own, so neither waits for the other. On CUDA with NCCL nothing here makes the host
wait: sends and receives run on streams of their own, tied to the computing stream by events. With
gloo the host waits where a message is needed.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


class HostWire:
    """Gloo between two processes on CPU tensors."""

    ahead = True  # receives may be posted long before they are waited for

    def __init__(self, rank: int, timeout: timedelta, backend: str = "gloo"):
        self._peer = 1 - rank
        self._groups = [dist.new_group([0, 1], backend=backend, timeout=timeout) for _ in range(2)]
        self._sent: list[tuple] = []

    def open(self, timeline) -> None:
        """A run begins; its messages are marked in the timeline."""
        self._timeline = timeline

    def send(self, tensor: Tensor, unit, *, back: bool = False) -> None:
        """Sends a tensor that stays as it is until the peer has answered."""
        start = self._timeline.mark()
        work = dist.isend(tensor.contiguous(), self._peer, group=self._groups[back])
        self._timeline.add("send", unit, start, self._timeline.mark())
        self._sent.append((work, tensor))

    def post(self, tensor: Tensor, unit, *, back: bool = False):
        """Makes room for a message; `take` waits for it."""
        return dist.irecv(tensor, self._peer, group=self._groups[back]), unit

    def take(self, posted) -> None:
        """Waits until the posted message is there."""
        work, unit = posted
        start = self._timeline.mark()
        work.wait()
        self._timeline.add("receive", unit, start, self._timeline.mark())

    def close(self) -> None:
        """Waits until everything has been sent."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()


class DeviceWire(HostWire):
    """NCCL between two devices; what is sent and received is ordered by streams.

    A receive is a kernel that waits on the device, and some calls of the host (loading a kernel,
    say) return only when it is done. The host is ahead of the device anyway: posting in the order
    of the work is early enough.
    """

    ahead = False

    def __init__(self, rank: int, device: str, timeout: timedelta):
        super().__init__(rank, timeout, "nccl")
        self._device, self._kept = device, []
        self._streams = [torch.cuda.Stream(device) for _ in range(2)]

    def send(self, tensor: Tensor, unit, *, back: bool = False) -> None:
        """Sends what the computing stream has written; the tensor is kept until `close`."""
        stream, tensor = self._streams[back], tensor.contiguous()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            start = self._timeline.mark()
            dist.isend(tensor, self._peer, group=self._groups[back]).wait()
            self._timeline.add("send", unit, start, self._timeline.mark())
        self._kept.append(tensor)

    def post(self, tensor: Tensor, unit, *, back: bool = False):
        """Receives as soon as the peer sends, whatever the computing stream is at."""
        with torch.cuda.stream(self._streams[back]):
            start = self._timeline.mark()
            dist.irecv(tensor, self._peer, group=self._groups[back]).wait()
            end = self._timeline.mark()
            self._timeline.add("receive", unit, start, end)
        return end

    def take(self, posted) -> None:
        """What the computing stream does next waits for the posted message."""
        torch.cuda.current_stream(self._device).wait_event(posted)

    def close(self) -> None:
        """Waits until everything has been sent."""
        torch.cuda.synchronize(self._device)
        self._kept.clear()
