"""The products and the attention of `cargo bench -p refseg-kernels`, in PyTorch (oneDNN and MKL on a CPU).

    pip install torch numpy
    python benches/torch_gemm.py [THREADS]

Medians and best times of rounds in which every case has its turn.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

ROUNDS = 15
SHAPES = [(1025, 1024, 4096), (1025, 4096, 1024), (330, 896, 4864), (40, 896, 4864), (1, 896, 4864)]


def products():
    for rows, inputs, outputs in SHAPES:
        layer = torch.nn.Linear(inputs, outputs, bias=False).eval()
        x = torch.randn(rows, inputs)
        operations = 2e-9 * rows * inputs * outputs
        name = f"{rows}×{inputs}×{outputs}"
        yield f"{name} f32", operations, lambda layer=layer, x=x: layer(x)
        half, half_x = torch.nn.Linear(inputs, outputs, bias=False).bfloat16().eval(), x.bfloat16()
        yield f"{name} bf16", operations, lambda layer=half, x=half_x: layer(x)
        # Weights in whole numbers, activations rounded at each call, as in refseg.
        for engine in ("onednn", "fbgemm"):
            if engine not in torch.backends.quantized.supported_engines:
                continue
            torch.backends.quantized.engine = engine
            quantized = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear})
            yield f"{name} int8 ({engine})", operations, lambda layer=quantized, x=x: layer(x)


def attention():
    q, k, v = (torch.randn(1, 16, 1025, 64) for _ in range(3))
    yield (
        "attention 1025×1025, 16 heads of 64",
        4e-9 * 16 * 1025 * 1025 * 64,
        lambda: F.scaled_dot_product_attention(q, k, v),
    )
    half = [x.bfloat16() for x in (q, k, v)]
    yield (
        "attention 1025×1025, 16 heads of 64, bf16",
        4e-9 * 16 * 1025 * 1025 * 64,
        lambda: F.scaled_dot_product_attention(*half),
    )


def main():
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    cases = [*products(), *attention()]
    times = {name: [] for name, _, _ in cases}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, _, run in cases:
                run()
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    print("| case | ms | GFLOP/s | ms at best |")
    print("|---|---|---|---|")
    for name, operations, _ in cases:
        median = statistics.median(times[name])
        print(f"| {name} | {median * 1e3:.3f} | {operations / median:.0f} | {min(times[name]) * 1e3:.3f} |")


if __name__ == "__main__":
    main()
