import sys, time, torch
from ember.engine.engine import Engine
from ember.engine.kernels import attention as A
from ember.engine.kernels.attention import Attention, Cut
from ember.engine.kernels.step import Seat
from ember.engine.sampling import SamplingParams
from ember.experiments.decode_roofline import _graph_us
from ember.measure.roofline import read_bandwidth_gb_s
from ember.model.architecture import PRESETS
from ember.model.checkpoint import random_decoder
bw = read_bandwidth_gb_s("cuda", repeats=50); print("bw", bw)
L, R, T = 12, 256, 32 * 2048
rows = torch.randn(L, 2, R, 8, 128, 128, device="cuda", dtype=torch.bfloat16)
arena = torch.randn(L, 2, 8, T, 128, device="cuda", dtype=torch.bfloat16)
cos, sin = torch.randn(2, 4096, 64, device="cuda").unbind()
norms = torch.ones(2, 128, device="cuda", dtype=torch.bfloat16)
from ember.engine.kernels.attention import Sharing
began = time.time()
for cut in (Cut(64,0,4,256), Cut(64,0,4,512), Cut(64,2,4,256), Cut(64,2,4,512), Cut(64,2,4,1024), Cut(64,3,4,512), Cut(32,2,4,512), Cut(32,3,4,512), Cut(64,2,8,512), Cut(128,2,8,512)):
    A.MANY = cut; out_line = []
    for n in (24, 64, 128, 256):
        per = 8; groups = [(2048 * (i % 32), 2048, list(range(8 * i, 8 * i + 8))) for i in range(n // 8)]
        att = Attention(rows, 32, cos, sin, arena); count = 1 << (len(groups) - 1).bit_length()
        att.tables.fill(groups + [(0, 0, [])] * (count - len(groups)), per)
        pos = torch.full((n,), 2048 + 64, dtype=torch.int32, device="cuda"); sh = torch.full((n,), 2048, dtype=torch.int32, device="cuda")
        qkv = torch.randn(n, 48 * 128, device="cuda", dtype=torch.bfloat16); out = torch.empty(n, 4096, device="cuda", dtype=torch.bfloat16)
        try:
            us = _graph_us(lambda: [att(l, qkv, norms, pos, sh, out, Sharing(count, per), eps=1e-6, pdl=True) for l in range(L)]) / L
        except Exception as e:
            us = float("nan"); print(repr(e)[:150])
        size = (n // 8 * 2048 + n * 65) * 4096
        out_line.append(f"{n}: {us:.1f}us {size / bw / 1e3 / us:.2f}")
        del att
    print(cut, "; ".join(out_line), f"{time.time() - began:.0f}s", flush=True)
del rows, arena
d = random_decoder(PRESETS["qwen3-4b"], 0, "cuda", torch.bfloat16)
F = torch.nn.functional
w = d.layers[0].mlp
for n in (24, 32, 64, 128, 256):
    x = torch.randn(n, 2560, device="cuda", dtype=torch.bfloat16)
    ws = [torch.cat([l.mlp.gate_proj.weight, l.mlp.up_proj.weight]) for l in d.layers[:8]]
    o = torch.empty(n, 19456, device="cuda", dtype=torch.bfloat16)
    a = _graph_us(lambda: [torch.mm(x, y.t(), out=o) for y in ws]) / 8
    ot = torch.empty(19456, n, device="cuda", dtype=torch.bfloat16)
    b = _graph_us(lambda: [torch.mm(y, x.t(), out=ot) for y in ws]) / 8
    xd = torch.randn(n, 9728, device="cuda", dtype=torch.bfloat16); od = torch.empty(n, 2560, device="cuda", dtype=torch.bfloat16)
    c = _graph_us(lambda: [torch.mm(xd, l.mlp.down_proj.weight.t(), out=od) for l in d.layers]) / 36
    nm = _graph_us(lambda: [F.rms_norm(x, (2560,), d.norm.weight, 1e-6) for _ in range(36)]) / 36
    print(n, f"gate_up {a:.1f} (limit {2560*19456*2/bw/1e3:.1f}) transposed {b:.1f} down {c:.1f} (limit {2560*9728*2/bw/1e3:.1f}) norm {nm:.1f}", flush=True)
