"""The products and the attention of `cargo bench -p refseg-kernels`, in PyTorch (oneDNN and MKL on a CPU).

    pip install torch numpy
    python benches/torch_gemm.py [--threads N] [--refseg PROGRAM]

Medians and best times of rounds in which every case has its turn. PROGRAM is what
`cargo bench -p refseg-kernels --no-run` names: with it, PyTorch's rounds and the program take turns, and a last table
has the best of PyTorch's times in the same precision over the program's.
"""

import argparse
import os
import statistics
import subprocess
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
        # oneDNN with weights in its own order, as compiled models have them.
        for precision, weight, y in (("f32", layer.weight, x), ("bf16", half.weight, half_x)):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
            yield f"{name} {precision} (onednn, packed)", operations, lambda weight=packed, x=y: linear(x, weight)
        # Weights in whole numbers, activations rounded at each call, as in refseg.
        for engine in ("onednn", "fbgemm"):
            if engine not in torch.backends.quantized.supported_engines:
                continue
            torch.backends.quantized.engine = engine
            quantized = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear})
            yield f"{name} int8 ({engine})", operations, lambda layer=quantized, x=x: layer(x)


def linear(x, packed):
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def attention():
    # Queries, keys and values of a token side by side, as one product gives them.
    parts = torch.randn(1, 1025, 3, 16, 64).permute(2, 0, 3, 1, 4).unbind()
    halves = [x.bfloat16() for x in parts]
    name, operations = "attention 1025×1025, 16 heads of 64 on 16", 4e-9 * 16 * 1025 * 1025 * 64
    # There is none in whole numbers: quantised models compute it in f32.
    for precision, (q, k, v) in (("f32", parts), ("bf16", halves), ("int8 (f32)", parts)):
        yield f"{name}, {precision}", operations, lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)


def measure(cases, rounds):
    """Seconds of each run, by name."""
    times = {name: [] for name, _, _ in cases}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, _, run in cases:
                run()
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return times


def refseg_times(program, threads):
    """Medians in seconds, by name, and what the program printed."""
    environment = os.environ | {"REFSEG_BENCH_THREADS": str(threads)}
    command = [program, "f32", "bf16", "int8"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines()[3:]]
    return {cells[0]: 1e-3 * float(cells[1]) for cells in rows}, printed


def against(program, cases, turns, threads):
    """Prints the best of PyTorch's times in the same precision over refseg's, turn by turn."""
    ratios = {}
    for _ in range(turns):
        ours, printed = refseg_times(program, threads)
        print(printed)
        theirs = {name: statistics.median(times) for name, times in measure(cases, max(1, ROUNDS // turns)).items()}
        for name, time_ in ours.items():
            same = [other for key, other in theirs.items() if key == name or key.startswith(f"{name} (")]
            if same:
                ratios.setdefault(name, []).append((min(same), time_))
    print("| case | PyTorch's best, ms | refseg, ms | PyTorch's time over refseg's | least | most |")
    print("|---|---|---|---|---|---|")
    for name, pairs in ratios.items():
        theirs, ours = (1e3 * statistics.median(times) for times in zip(*pairs))
        speeds = [their / our for their, our in pairs]
        numbers = f"{statistics.median(speeds):.2f} | {min(speeds):.2f} | {max(speeds):.2f}"
        print(f"| {name} | {theirs:.3f} | {ours:.3f} | {numbers} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--refseg", metavar="PROGRAM")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [*products(), *attention()]
    if options.refseg:
        return against(options.refseg, cases, options.turns, options.threads)
    times = measure(cases, ROUNDS)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    print("| case | ms | GFLOP/s | ms at best |")
    print("|---|---|---|---|")
    for name, operations, _ in cases:
        median = statistics.median(times[name])
        print(f"| {name} | {median * 1e3:.3f} | {operations / median:.0f} | {min(times[name]) * 1e3:.3f} |")


if __name__ == "__main__":
    main()
