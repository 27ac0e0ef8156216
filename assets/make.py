"""Draws shapes.png, the picture of the README's first command.

Needs Pillow: python3 assets/make.py. Nothing of refseg's own generator is used,
so that the picture shows how the built-in model does on somebody else's drawing.
"""

from math import cos, pi, sin, tau
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 480
# Drawn this many times larger, then reduced, for smooth edges.
FINE = 4

RED = (220, 53, 60)
BLUE = (38, 92, 214)
GREEN = (44, 152, 84)
YELLOW = (247, 205, 40)


def background():
    top, bottom = (236, 241, 247), (209, 220, 232)
    picture = Image.new("RGB", (1, HEIGHT))
    for y in range(HEIGHT):
        share = y / (HEIGHT - 1)
        colour = tuple(round(a + (b - a) * share) for a, b in zip(top, bottom))
        picture.putpixel((0, y), colour)
    return picture.resize((WIDTH * FINE, HEIGHT * FINE))


def turned(points, centre, degrees=0):
    angle = degrees * pi / 180
    for x, y in points:
        yield (
            FINE * (centre[0] + x * cos(angle) - y * sin(angle)),
            FINE * (centre[1] + x * sin(angle) + y * cos(angle)),
        )


def disc(draw, centre, radius, colour):
    (x, y) = centre
    draw.ellipse([FINE * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)


def ring(draw, centre, outer, inner, colour):
    (x, y) = centre
    corners = [FINE * v for v in (x - outer, y - outer, x + outer, y + outer)]
    draw.ellipse(corners, outline=colour, width=FINE * (outer - inner))


def star(draw, centre, radius, colour, degrees):
    def corner(i):
        reach = radius if i % 2 == 0 else 0.44 * radius
        return reach * sin(i * pi / 5), -reach * cos(i * pi / 5)

    draw.polygon(list(turned(map(corner, range(10)), centre, degrees)), fill=colour)


def cross(draw, centre, reach, half_width, colour, degrees):
    r, w = reach, half_width
    corners = [(-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w)]
    corners += [(-x, -y) for x, y in corners]
    draw.polygon(list(turned(corners, centre, degrees)), fill=colour)


def heart(draw, centre, radius, colour):
    def point(i):
        t = i * tau / 240
        x = 16 * sin(t) ** 3
        y = -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t))
        return radius * x / 16, radius * (y - 2.5) / 16

    draw.polygon(list(turned(map(point, range(240)), centre)), fill=colour)


def main():
    picture = background()
    draw = ImageDraw.Draw(picture)
    ring(draw, (130, 132), 84, 48, RED)
    disc(draw, (325, 92), 46, BLUE)
    star(draw, (520, 140), 92, YELLOW, 6)
    heart(draw, (128, 352), 82, RED)
    cross(draw, (325, 305), 80, 27, GREEN, -7)
    disc(draw, (518, 354), 78, BLUE)
    picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    picture.save(Path(__file__).with_name("shapes.png"), optimize=True)


main()
