"""Draws pictures that refseg's own generator cannot: moons, arrows and houses.

    python3 draw.py FOLDER COUNT SEED

Each picture comes in the `folder` format: NAME.jpg, NAME.txt with a phrase a line, NAME.mask.png.
`train` was drawn with 64 and seed 1, `val` with 32 and seed 2, by Pillow 13.
"""

import pathlib
import random
import sys

from PIL import Image, ImageDraw

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 200),
    "orange": (240, 140, 30),
    "purple": (130, 60, 170),
    "black": (20, 20, 20),
}
PAPER = [(245, 240, 225), (225, 235, 245), (230, 245, 230), (250, 250, 250), (235, 225, 245)]
SIZES = [(320, 240), (240, 240), (240, 320)]
KINDS = ["moon", "arrow", "house"]
# Corners as shares of the radius.
ARROW = [(-1, -0.3), (0, -0.3), (0, -0.8), (1, 0), (0, 0.8), (0, 0.3), (-1, 0.3)]
HOUSE = [(-1, -0.1), (0, -1), (1, -0.1), (0.8, -0.1), (0.8, 1), (-0.8, 1), (-0.8, -0.1)]
# Pictures are drawn this much larger and then shrunk, for smooth edges.
FINER = 4


def draw_shape(draw, kind, x, y, r, fill, background):
    """One shape around (x, y); a moon is a disc with a piece of background over it."""
    if kind == "moon":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        draw.ellipse([x - 0.35 * r, y - 0.85 * r, x + 1.25 * r, y + 0.75 * r], fill=background)
    else:
        corners = ARROW if kind == "arrow" else HOUSE
        draw.polygon([(x + r * dx, y + r * dy) for dx, dy in corners], fill=fill)


def place(rng, width, height):
    """Two to four shapes that do not touch, no two alike: (x, y, radius, kind, colour)."""
    kinds = [rng.choice(KINDS) for _ in range(rng.randint(2, 4))]
    placed, tries = [], 0
    while len(placed) < len(kinds) and tries < 500:
        tries += 1
        r = rng.uniform(22, 44)
        x, y = rng.uniform(r + 4, width - r - 4), rng.uniform(r + 4, height - r - 4)
        colour = rng.choice(list(COLOURS))
        kind = kinds[len(placed)]
        if any((x - a) ** 2 + (y - b) ** 2 < (r + s + 14) ** 2 for a, b, s, _, _ in placed):
            continue
        if any(k == kind and c == colour for *_, k, c in placed):
            continue
        placed.append((x, y, r, kind, colour))
    return placed


def main():
    folder, count, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        width, height = rng.choice(SIZES)
        paper = rng.choice(PAPER)
        shapes = place(rng, width, height)
        image = Image.new("RGB", (width * FINER, height * FINER), paper)
        draw = ImageDraw.Draw(image)
        for x, y, r, kind, colour in shapes:
            draw_shape(draw, kind, x * FINER, y * FINER, r * FINER, COLOURS[colour], paper)
        image = image.resize((width, height), Image.LANCZOS)
        x, y, r, kind, colour = rng.choice(shapes)
        mask = Image.new("L", (width, height), 0)
        draw_shape(ImageDraw.Draw(mask), kind, x, y, r, 255, 0)
        phrases = [f"the {colour} {kind}"]
        if sum(other == kind for *_, other, _ in shapes) == 1:
            phrases.append(f"the {kind}")
        image.save(folder / f"{number:03}.jpg", quality=88)
        mask.save(folder / f"{number:03}.mask.png")
        (folder / f"{number:03}.txt").write_text("\n".join(phrases) + "\n")


main()
