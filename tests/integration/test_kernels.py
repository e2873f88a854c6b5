"""The GPU's kernels compute what PyTorch's own operations do.

Without a GPU they run in Triton's interpreter, which is what a CPU can check of them.
"""

import os
import subprocess
import sys

import pytest
import torch

# Ragged on purpose: 12 query heads and 2 key heads fill no whole program, 1100 no whole block.
CHECK = """
import torch
from medvqa.fast import fp8, kernels, triton_kernels as fused

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
make = lambda *shape: torch.randn(*shape, device=device)
reference = {name: getattr(kernels, name) for name in dir(kernels)}

def equal(found, expected):
    torch.testing.assert_close(found, expected.to(found), rtol=1e-4, atol=1e-5)

x, grad, residual, weight = make(5, 300), make(5, 300), make(5, 300), make(300)
equal(fused.rms_norm_backward(x, weight, 1e-6, grad, residual),
      kernels.rms_norm_backward(*(t.cpu() for t in (x, weight)), 1e-6, grad.cpu(), residual.cpu()))

num_q, num_k, width = 12, 2, 16
row = make(5, (num_q + 2 * num_k) * width)
qk = row.view(5, -1, width)[:, : num_q + num_k]
cos, sin = make(5, width // 2), make(5, width // 2)
for norms in ((make(width), make(width)), (None, None)):
    turn = kernels.NormRope(*norms, 1e-6, cos, sin)
    on_cpu = kernels.NormRope(*(n.cpu() if hasattr(n, "cpu") else n for n in turn))
    equal(fused.norm_rope(qk, turn, num_q), kernels.norm_rope(qk.cpu(), on_cpu, num_q))
    q_grad, k_grad = make(5, num_q, width), make(5, num_k, width)
    outs = []
    for on, arguments in ((device, (qk, turn, q_grad, k_grad)),
                          ("cpu", (qk.cpu(), on_cpu, q_grad.cpu(), k_grad.cpu()))):
        whole = torch.zeros(5, num_q + 2 * num_k, width, device=on)
        (fused if on == device and len(outs) == 0 else kernels).norm_rope_backward(
            *arguments, whole[:, : num_q + num_k])
        outs.append(whole)
    equal(*outs)

odd = make(5, 3 * 4 * 12).view(5, 12, 12)[:, :8]  # half a head of 12 is no power of two
cos, sin = make(5, 6), make(5, 6)
for norms in ((make(12), make(12)), (None, None)):
    turn = kernels.NormRope(*norms, 1e-6, cos, sin)
    on_cpu = kernels.NormRope(*(n.cpu() if hasattr(n, "cpu") else n for n in turn))
    equal(fused.norm_rope(odd, turn, 4), kernels.norm_rope(odd.cpu(), on_cpu, 4))

wide = torch.cat([make(5, 300), 1e3 * make(1, 300), torch.zeros(1, 300, device=device)])
values, scales = fused.quantize_rows(wide)
expected = fp8.quantize_rows(wide.cpu())
equal(scales, expected.scales)
if device == "cuda":  # Triton's interpreter rounds to 8 bits in another way than the hardware
    equal(values.float() * scales, expected.values.float() * expected.scales)

gate_up, active_grad = make(5, 2200), make(5, 1100)
equal(fused.swiglu(gate_up), kernels.swiglu(gate_up.cpu()))
copies = gate_up.clone(), gate_up.cpu().clone()
equal(fused.swiglu_backward(copies[0], active_grad),
      kernels.swiglu_backward(copies[1], active_grad.cpu()))
equal(*copies)
"""


def test_the_fused_kernels_equal_pytorch_s_operations():
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        pytest.importorskip("triton", reason="triton is not installed: its kernels are NOT checked")
        environment["TRITON_INTERPRET"] = "1"
    answer = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, check=False
    )
    assert answer.returncode == 0, answer.stderr
