"""A model that computes the same, with outliers on the way: what rounding does to them.

    pip install torch safetensors
    python benches/outliers.py MODEL OUT [--factor 30] [--channel 17]

In each block of the vision tower and of the language model, one channel of what a norm gives is multiplied by the factor,
and its column in the layers that read it divided by it. In exact numbers nothing changes; a row that is rounded relative
to its largest number loses the others. `refseg bench OUT --precision int8 --agreement 60` then measures what is left.
Knows the keys of InternVL with Qwen2 or Llama.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

READERS = {
    "norm1.weight": ["attn.qkv"],
    "norm2.weight": ["mlp.fc1"],
    "input_layernorm.weight": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "post_attention_layernorm.weight": ["mlp.gate_proj", "mlp.up_proj"],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, default=30)
    parser.add_argument("--channel", type=int, default=17)
    options = parser.parse_args()
    shutil.copytree(options.model, options.out)
    path = options.out / "model.safetensors"
    tensors = {key: tensor.float() for key, tensor in load_file(path).items()}
    changed = 0
    for key in list(tensors):
        norm = next((norm for norm in READERS if key.endswith(f".{norm}")), None)
        if norm is None or not key.startswith(("vision_model.", "language_model.")):
            continue
        block = key.removesuffix(norm)
        tensors[key][options.channel] *= options.factor
        bias = key.removesuffix("weight") + "bias"
        if bias in tensors:
            tensors[bias][options.channel] *= options.factor
        for reader in READERS[norm]:
            tensors[f"{block}{reader}.weight"][:, options.channel] /= options.factor
        changed += 1
    save_file(tensors, path)
    print(f"{changed} norms have an outlier {options.factor:g} times as large")


if __name__ == "__main__":
    main()
