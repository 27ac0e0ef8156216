"""What one phrase costs in PyTorch: MLLMSeg with InternVL2/2.5 and Qwen2, the same computation as `refseg`.

    pip install torch numpy safetensors tokenizers pillow
    python benches/torch_mllmseg.py --check [MODEL --refseg target/release/refseg]
    python benches/torch_mllmseg.py MODEL --refseg target/release/refseg
    python benches/torch_mllmseg.py --block

MODEL is a folder in the official layout, such as `refseg init internvl2_5-1b MODEL` writes. PyTorch computes the whole
of a phrase each time, as the official code does: vision tower, projector, language model over the whole prompt, mask
decoder. Reading the picture and resizing the mask are left out, and the vocabulary's scores are computed at one position
only; refseg's times contain the former and do the same with the latter.

`--check` compares probabilities with those of the official code on the small model among refseg's test fixtures, and,
given MODEL and `--refseg`, with those of refseg on MODEL. `--block` measures one block of InternViT-300M alone, compiled
as well, in rounds in which every case has its turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch._inductor.config
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURE = REPOSITORY / "crates/refseg/tests/fixtures/mllmseg-qwen2-res"
PICTURE = REPOSITORY / "assets/shapes.png"
# The first of `refseg bench`'s phrases.
PHRASE = "the small red ring"
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
IMAGE_TOKENS = 256
# The fields of InternViT-300M's config that a block has.
INTERNVIT = {"hidden_size": 1024, "intermediate_size": 4096, "layer_norm_eps": 1e-6, "num_attention_heads": 16}


class VisionBlock(nn.Module):
    """`[1, tokens, width]` to the same."""

    def __init__(self, config):
        super().__init__()
        width, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.heads = config["num_attention_heads"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        q, k, v = (split_heads(part, self.heads) for part in self.attn["qkv"](self.norm1(x)).chunk(3, -1))
        x = x + self.ls1 * self.attn["proj"](join_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + self.ls2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        tokens = (config["image_size"] // patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels):
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding, patches], 1) + self.position_embedding


class VisionModel(nn.Module):
    """Pixels `[1, 3, 448, 448]` to patches `[1, 1024, width]`, without the class token."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        blocks = [VisionBlock(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*blocks)})

    def forward(self, pixels):
        return self.encoder["layers"](self.embeddings(pixels))[:, 1:]


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LanguageBlock(nn.Module):
    """`[1, tokens, width]` to the same, each token seeing those before it."""

    def __init__(self, config):
        super().__init__()
        width, inner, eps = config["hidden_size"], config["intermediate_size"], config["rms_norm_eps"]
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        narrow = width // self.heads * self.groups
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(width, eps), RmsNorm(width, eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width),
                "k_proj": nn.Linear(width, narrow),
                "v_proj": nn.Linear(width, narrow),
                "o_proj": nn.Linear(width, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )

    def forward(self, x, cos, sin):
        attention, mlp = self.self_attn, self.mlp
        h = self.input_layernorm(x)
        q = rotate(split_heads(attention["q_proj"](h), self.heads), cos, sin)
        k = rotate(split_heads(attention["k_proj"](h), self.groups), cos, sin)
        v = split_heads(attention["v_proj"](h), self.groups)
        k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (k, v))
        x = x + attention["o_proj"](join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        h = self.post_attention_layernorm(x)
        return x + mlp["down_proj"](F.silu(mlp["gate_proj"](h)) * mlp["up_proj"](h))


class LanguageModel(nn.Module):
    """Embeddings `[1, tokens, width]` to what the last norm makes of the last block's output."""

    def __init__(self, config):
        super().__init__()
        width, vocabulary = config["hidden_size"], config["vocab_size"]
        self.head_dim, self.theta = width // config["num_attention_heads"], config["rope_theta"]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocabulary, width),
                "layers": nn.ModuleList(LanguageBlock(config) for _ in range(config["num_hidden_layers"])),
                "norm": RmsNorm(width, config["rms_norm_eps"]),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x):
        frequencies = self.theta ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        angles = torch.outer(torch.arange(x.shape[1]), frequencies).repeat(1, 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.model["layers"]:
            x = block(x, cos, sin)
        return self.model["norm"](x)


class Attention(nn.Module):
    """Attention of `x` to `memory`, with eight heads."""

    HEADS = 8

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, memory):
        q, k, v = (split_heads(part, self.HEADS) for part in (self.q(x), self.k(memory), self.v(memory)))
        return self.out_proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and two linear layers, a norm after each."""

    def __init__(self, width):
        super().__init__()
        self.self_attn, self.multihead_attn = Attention(width), Attention(width)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, memory):
        x = self.norm1(x + self.self_attn(x, x))
        x = self.norm2(x + self.multihead_attn(x, memory))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Decoder(nn.Module):
    """One layer, and a norm after its last norm."""

    def __init__(self, width):
        super().__init__()
        layers = nn.ModuleList([DecoderLayer(width)])
        self.decoder = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(width)})

    def forward(self, x, memory):
        return self.decoder["norm"](self.decoder["layers"][0](x, memory))


class DySample(nn.Module):
    """`[1, C, side, side]` to `[1, C, 2·side, 2·side]`, each of four groups of channels read where its offsets say."""

    GROUPS = 4

    def __init__(self, width):
        super().__init__()
        self.offset = nn.Conv2d(width, 8 * self.GROUPS, 1)
        quarter = torch.tensor([-0.25, 0.25])
        # Axes: x and y, group, row and column within the cell.
        x, y = quarter.expand(self.GROUPS, 2, 2), quarter[:, None].expand(self.GROUPS, 2, 2)
        self.register_buffer("init_pos", torch.stack([x, y]).reshape(1, -1, 1, 1))

    def forward(self, x):
        side = x.shape[-1]
        offsets = (0.25 * self.offset(x) + self.init_pos).view(2, self.GROUPS, 2, 2, side, side)
        centres = torch.arange(side, dtype=x.dtype) + 0.5
        places = torch.stack([offsets[0] + centres, offsets[1] + centres[:, None]], -1) * (2 / side) - 1
        grid = places.permute(0, 3, 1, 4, 2, 5).reshape(self.GROUPS, 2 * side, 2 * side, 2)
        groups = x.reshape(self.GROUPS, -1, side, side)
        read = F.grid_sample(groups, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return read.reshape(1, -1, 2 * side, 2 * side)


class MaskDecoder(nn.Module):
    """Patches `[1, 1024, C]`, image tokens `[1, 256, D]` and one `[SEG]` vector `[1, 1, D]` to `[448, 448]` logits."""

    def __init__(self, width, language_width, patch):
        super().__init__()
        self.patch = patch
        self.img_llm_down, self.text_down = nn.Linear(language_width, width), nn.Linear(language_width, width)
        self.text_out_adapter = nn.Linear(3 * width, width)
        self.ca_layer_v2l, self.ca_layer_vl = Decoder(width), Decoder(width)
        self.upsample_adapter_l = DySample(width)
        self.conv1 = nn.Sequential(nn.Conv2d(width, patch * patch, 3, padding=1), nn.BatchNorm2d(patch * patch))
        self.conv2 = nn.Conv2d(1, 1, 5, padding=2)

    def forward(self, patches, image, seg):
        text, image = self.text_down(seg), self.img_llm_down(image)
        meaning = self.upsample_adapter_l(to_grid(image)).flatten(2).transpose(1, 2)
        joined = self.text_out_adapter(torch.cat([self.ca_layer_v2l(patches, image), patches, meaning], -1))
        located = to_grid(self.ca_layer_vl(joined, text))
        return self.conv2(F.pixel_shuffle(F.relu(self.conv1(located)), self.patch))[0, 0]


class Mllmseg(nn.Module):
    """Pixels and a prompt with one `[SEG]` to probabilities `[448, 448]` and the likeliest token in its place."""

    def __init__(self, config, image_id, seg_id):
        super().__init__()
        self.image_id, self.seg_id = image_id, seg_id
        vision, language = config["vision_config"], config["llm_config"]
        width, language_width = vision["hidden_size"], language["hidden_size"]
        self.vision_model, self.language_model = VisionModel(vision), LanguageModel(language)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * width),
            nn.Linear(4 * width, language_width),
            nn.GELU(),
            nn.Linear(language_width, language_width),
        )
        self.res_decoder = MaskDecoder(width, language_width, vision["patch_size"])

    def forward(self, pixels, ids):
        first = int((ids == self.image_id).nonzero()[0])
        seg = int((ids == self.seg_id).nonzero()[0])
        patches = self.vision_model(pixels)
        embeddings = self.language_model.model["embed_tokens"](ids)[None]
        embeddings[:, first : first + IMAGE_TOKENS] = self.mlp1(unshuffle(patches))
        hidden = self.language_model(embeddings)
        # The reference reads each token's place one position before it.
        before = hidden[:, seg - 1 : seg]
        image = hidden[:, first - 1 : first - 1 + IMAGE_TOKENS]
        logits = self.res_decoder(patches, image, before)
        return logits.float().sigmoid(), self.language_model.lm_head(before).argmax()


def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x):
    return x.transpose(1, 2).flatten(2)


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def to_grid(x):
    """`[1, side², C]` to `[1, C, side, side]`."""
    side = int(x.shape[1] ** 0.5)
    return x.transpose(1, 2).unflatten(2, (side, side))


def unshuffle(patches):
    """`[1, 1024, C]` to `[1, 256, 4C]`: the four patches of a cell, row by row, beside one another."""
    side = int(patches.shape[1] ** 0.5) // 2
    cells = patches.view(1, side, 2, side, 2, -1).permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(1, side * side, -1)


def prompt(folder, phrase):
    """The ids of a prompt, and those of the image's place and of `[SEG]`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    image = "<img>" + "<IMG_CONTEXT>" * IMAGE_TOKENS + "</img>"
    turns = {
        "system": SYSTEM,
        "user": f"{image}\n What are {phrase}in this image? Please output segmentation masks.",
        "assistant": f"Sure,{phrase}:[SEG].",
    }
    text = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns.items())
    # The library numbers added tokens from the end of the vocabulary where a file leaves a gap between them.
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    added = {token["content"]: token["id"] for token in added}
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ids = torch.tensor([added.get(token, number) for token, number in zip(encoded.tokens, encoded.ids)])
    return ids, added["<IMG_CONTEXT>"], added["[SEG]"]


def read_pixels(path):
    picture = Image.open(path).convert("RGB").resize((448, 448), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / deviation[:, None, None])[None]


def load(folder, image_id, seg_id):
    """The model of a folder, in f32."""
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        model = Mllmseg(config, image_id, seg_id)
    tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if "in_proj_" in key:
            for part, name in zip(tensor.chunk(3), "qkv"):
                tensors[key.replace("in_proj_", f"{name}.")] = part.float().clone()
        else:
            tensors[key] = tensor.float()
    start = DySample(config["vision_config"]["hidden_size"]).init_pos
    tensors.setdefault("res_decoder.upsample_adapter_l.init_pos", start)
    tensors.setdefault("res_decoder.conv1.1.num_batches_tracked", torch.tensor(0))
    model.load_state_dict(tensors, assign=True)
    return model.eval()


class Torch:
    """The model in one precision: `f32`, `bf16`, or `int8`, linear layers with weights in whole numbers."""

    # Enough that no weight is still in a cache from the last time.
    BLOCKS = 4

    def __init__(self, folder, precision):
        self.ids, *special = prompt(folder, PHRASE)
        self.model, self.pixels = load(folder, *special), read_pixels(PICTURE)
        if precision == "bf16":
            self.model, self.pixels = self.model.bfloat16(), self.pixels.bfloat16()
        if precision == "int8":
            self.model = quantized(self.model)

    def phrase_ms(self):
        return second_run_ms(lambda: self.model(self.pixels, self.ids))

    def block_ms(self):
        vision = self.model.vision_model
        x, blocks = vision.embeddings(self.pixels), vision.encoder["layers"][: self.BLOCKS]
        return second_run_ms(lambda: blocks(x)) / len(blocks)


class Refseg:
    """The program, by `refseg bench`, which runs everything once before it measures."""

    def __init__(self, binary, folder, precision, threads):
        self.command = [binary, "--threads", str(threads), "bench", "--precision", precision]
        self.command += ["--image", PICTURE, "--repeat", "1", "--phrases", "1", "--json", "--quiet"]
        self.folder = folder
        self.layers = json.loads((folder / "config.json").read_text())["vision_config"]["num_hidden_layers"]

    def bench(self, folder):
        return json.loads(subprocess.run([*self.command, folder], check=True, capture_output=True).stdout)

    def phrase_ms(self):
        """First phrase, further phrase and encoding alone."""
        found = self.bench(self.folder)
        return found["first_phrase_ms"], found["further_phrase_ms"], found["encode_ms"]

    def block_ms(self, encode_ms):
        """What encoding takes more than with one block, for each of the others."""
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as short:
            for file in self.folder.iterdir():
                (Path(short) / file.name).hardlink_to(file.resolve())
            config = json.loads((self.folder / "config.json").read_text())
            config["vision_config"]["num_hidden_layers"] = 1
            (Path(short) / "config.json").unlink()
            (Path(short) / "config.json").write_text(json.dumps(config))
            return (encode_ms - self.bench(short)["encode_ms"]) / (self.layers - 1)


def quantized(model):
    torch.backends.quantized.engine = "onednn"
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


def block(rounds):
    """Times of one block with random weights, 1025 tokens."""
    x = torch.randn(1, 1025, INTERNVIT["hidden_size"])
    plain, half, whole = (VisionBlock(INTERNVIT).eval() for _ in range(3))
    half, whole = half.bfloat16(), quantized(whole)
    torch._inductor.config.freezing = True
    cases = {
        "f32": (plain, x),
        "f32, compiled": (torch.compile(plain), x),
        "bf16": (half, x.bfloat16()),
        "bf16, compiled": (torch.compile(half), x.bfloat16()),
        "int8": (whole, x),
    }
    times = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (run, tokens) in cases.items():
            times[name].append(second_run_ms(lambda: run(tokens)))
    print("| one block | median | least | most |\n|---|---|---|---|")
    for name, values in times.items():
        row(name, values, "{:.1f} ms")


def second_run_ms(run):
    # Compiled models fold their weights only where no gradient is asked for, and not in inference mode.
    with torch.no_grad():
        run()
        start = time.perf_counter()
        run()
    return 1e3 * (time.perf_counter() - start)


def check(folder, refseg):
    """Compares with the official code, and with refseg on the model of `folder`."""
    case = json.loads((FIXTURE / "case.json").read_text())
    expected = load_file(FIXTURE / "expected.safetensors")
    _, *special = prompt(FIXTURE, "")
    model, pixels = load(FIXTURE, *special), read_pixels(FIXTURE / case["image"])
    for index, phrase in enumerate(case["expressions"]):
        ids, *_ = prompt(FIXTURE, phrase)
        assert ids.tolist() == case["solo_input_ids"][index], phrase
        with torch.inference_mode():
            found, token = model(pixels, ids)
        report(f"the official code, {phrase!r}", found[::4, ::4], expected["solo_mask_probs.stride4"][index], 1e-5)
        assert token == expected["solo_logits_at_decision"][index].argmax(), phrase
    if folder and refseg:
        with tempfile.TemporaryDirectory() as scratch:
            probabilities = Path(scratch) / "probabilities.npy"
            command = [refseg, "segment", PICTURE, PHRASE, "--model", folder, "--precision", "f32", "--no-overlay"]
            subprocess.run([*command, "--probs", probabilities, "--quiet"], check=True, stdout=subprocess.DEVNULL)
            expected = torch.from_numpy(np.load(probabilities))[0]
        ids, *special = prompt(folder, PHRASE)
        with torch.inference_mode():
            found, _ = load(folder, *special)(read_pixels(PICTURE), ids)
        report(f"refseg, {PHRASE!r}, {folder}", found, expected, 5e-5)


def report(what, found, expected, tolerance):
    gap = (found - expected).abs().max().item()
    print(f"{what}: probabilities differ by {gap:.1e} at most, deviation {expected.std():.2f}")
    assert gap <= tolerance, what


def turn(torches, programs):
    """One round: everything once, milliseconds by name."""
    times = {}
    for precision, refseg in programs.items():
        first, further, encode = refseg.phrase_ms()
        times[f"refseg {precision}, first phrase"] = first
        times[f"refseg {precision}, further phrase"] = further
        times[f"refseg {precision}, block"] = refseg.block_ms(encode)
    for precision, model in torches.items():
        times[f"torch {precision}, phrase"] = model.phrase_ms()
        times[f"torch {precision}, block"] = model.block_ms()
    return times


def tables(rounds, programs, torches):
    median = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    best = min((f"torch {precision}, phrase" for precision in torches), key=median.get)
    print("| time | median | least | most |\n|---|---|---|---|")
    for name in median:
        row(name, [times[name] for times in rounds], "{:.1f} ms")
    print("\n| ratio | median | least | most |\n|---|---|---|---|")
    for precision in programs:
        pairs = [("first phrase", best), ("further phrase", best), ("block", "torch bf16, block")]
        for what, other in pairs:
            name = f"refseg {precision}, {what}"
            if other in median:
                row(f"{name} / {other}", [times[name] / times[other] for times in rounds], "{:.3f}")


def row(name, values, shape):
    shown = (shape.format(value) for value in (statistics.median(values), min(values), max(values)))
    print(f"| {name} | {' | '.join(shown)} |")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a folder in the official layout")
    parser.add_argument("--check", action="store_true", help="compare results, not times")
    parser.add_argument("--block", action="store_true", help="one block of InternViT-300M in PyTorch alone")
    parser.add_argument("--refseg", help="the program to measure, in turns with PyTorch")
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16", "int8"], help="PyTorch's")
    parser.add_argument("--refseg-precisions", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.check:
        return check(options.model, options.refseg)
    if options.block:
        return block(options.rounds)
    if not options.model:
        raise SystemExit("a model to measure, or --check, or --block")
    torches = {precision: Torch(options.model, precision) for precision in options.precisions}
    programs = {}
    if options.refseg:
        for precision in options.refseg_precisions:
            programs[precision] = Refseg(options.refseg, options.model, precision, options.threads)
    rounds = [turn(torches, programs) for _ in range(options.rounds)]
    length = len(next(iter(torches.values())).ids)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds, a prompt of {length} tokens")
    tables(rounds, programs, torches)


if __name__ == "__main__":
    main()
