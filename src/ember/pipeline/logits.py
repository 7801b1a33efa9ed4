"""Two pipeline stages in two processes, hidden states sent between them (P1-0.1).

Stage 0 embeds and runs the first layers, stage 1 the others and the head. NCCL where there are two
devices, gloo otherwise. Timing and overlap of stages are the pipeline's business, not this one's.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ember.model.checkpoint import load_decoder
from ember.pipeline.pipeline import StageFailed


def two_stage_logits(model: Path, prompt: list[int], *, device: str):
    """Logits of the prompt's last token from one stage and from two: two (V,) float32 tensors.

    The first stage has half of the layers. Weights are float32 in both, so that the two differ by
    nothing but where they were computed.
    """
    two_devices = device == "cuda" and torch.cuda.device_count() > 1
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(model), prompt, device, two_devices, folder)
        try:
            mp.spawn(_stage, args=arguments, nprocs=2)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise StageFailed(
                f"a pipeline stage failed: {str(error).strip().splitlines()[-1]}. "
                "Check that two processes fit in memory and may open local sockets."
            ) from None
        two = torch.load(Path(folder) / "logits.pt", weights_only=True)
    decoder = load_decoder(Path(model), device=device, dtype=torch.float32)
    with torch.inference_mode():
        hidden = decoder(torch.tensor([prompt], device=device))
        one = decoder.logits(hidden[:, -1:])[0, 0].float().cpu()
    return one, two


def _stage(rank: int, model: str, prompt: list, device: str, two_devices: bool, folder: str):
    torch.set_num_threads(1)
    place = f"cuda:{rank}" if two_devices else device
    if two_devices:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if two_devices else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
    )
    wire = place if two_devices else "cpu"
    decoder = load_decoder(Path(model), device=place, dtype=torch.float32)
    layers = decoder.arch.num_layers
    first = layers // 2
    with torch.inference_mode():
        if rank == 0:
            hidden = decoder(torch.tensor([prompt], device=place), layers=range(first))
            dist.send(hidden.to(wire).contiguous(), dst=1)
        else:
            shape = (1, len(prompt), decoder.arch.hidden_size)
            hidden = torch.empty(shape, dtype=torch.float32, device=wire)
            dist.recv(hidden, src=0)
            hidden = decoder(hidden=hidden.to(place), layers=range(first, layers))
            torch.save(decoder.logits(hidden[:, -1:])[0, 0].cpu(), Path(folder) / "logits.pt")
    dist.barrier()
    dist.destroy_process_group()
