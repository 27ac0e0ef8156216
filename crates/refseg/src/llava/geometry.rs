//! Any resolution: how a picture is cut into tiles, and which of their patches
//! show it.
//!
//! Paper: LLaVA-NeXT (LLaVA-1.6). Reference: `select_best_resolution`,
//! `resize_and_pad_image` and `unpad_image`. All products are f64 with the
//! quotient taken first: exact arithmetic would differ by a pixel or a patch
//! for some sizes.

use std::ops::Range;

use crate::image::Image;

/// Where a picture lies on its canvas of tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Width and height of the canvas in pixels.
    pub canvas_px: [usize; 2],
    /// Width and height of the picture on the canvas, its aspect kept.
    pub resized_px: [usize; 2],
    /// Where the picture's upper left corner lies on the canvas, `(x, y)`.
    pub paste_px: [usize; 2],
    /// Side of a tile in pixels.
    pub tile_px: usize,
    /// Rows of the canvas's patches that are kept: those the picture reaches.
    pub rows: Range<usize>,
    /// Columns of the canvas's patches that are kept.
    pub columns: Range<usize>,
}

impl Geometry {
    /// The geometry of a picture of `width` × `height` pixels, each positive.
    ///
    /// - `candidates`: width and height of the canvases to choose from, multiples of `tile_px`
    /// - `patches`: patches along the side of a tile
    ///
    /// Returns `None` without candidates.
    pub fn of(
        [width, height]: [usize; 2],
        candidates: &[[usize; 2]],
        tile_px: usize,
        patches: usize,
    ) -> Option<Self> {
        let canvas_px = best_canvas([width, height], candidates)?;
        let [canvas_width, canvas_height] = canvas_px;
        let resized_px = fit([width, height], canvas_px);
        let grid = canvas_px.map(|side| side / tile_px * patches);
        let [columns, rows] = kept([width, height], grid);
        Some(Self {
            canvas_px,
            resized_px,
            paste_px: [
                (canvas_width - resized_px[0]) / 2,
                (canvas_height - resized_px[1]) / 2,
            ],
            tile_px,
            rows,
            columns,
        })
    }

    /// Tiles of the canvas along each axis: columns and rows.
    pub fn grid(&self) -> [usize; 2] {
        self.canvas_px.map(|side| side / self.tile_px)
    }

    /// How many tokens the picture becomes: the base view of `patches` squared, then each kept row with a newline.
    pub fn tokens(&self, patches: usize) -> usize {
        patches * patches + self.rows.len() * (self.columns.len() + 1)
    }

    /// The views that the vision tower sees: the whole picture squashed to a
    /// tile, then the canvas tile by tile in reading order.
    pub fn views(&self, image: &Image) -> Vec<Image> {
        let side = self.tile_px as u32;
        let [width, height] = self.resized_px.map(|side| side as u32);
        let resized = image.resize_as_pillow_13(width, height);
        let [columns, rows] = self.grid();
        let [left, top] = self.paste_px.map(|offset| offset as i64);
        let tile = |row: usize, column: usize| {
            let corner = |index: usize| (index * self.tile_px) as i64;
            resized.window(corner(column) - left, corner(row) - top, side, side)
        };
        let tiles = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        std::iter::once(image.resize_as_pillow_13(side, side))
            .chain(tiles.map(|(row, column)| tile(row, column)))
            .collect()
    }
}

/// The canvas on which the picture keeps most of its pixels; among equals the
/// one that wastes least, then the first.
fn best_canvas([width, height]: [usize; 2], candidates: &[[usize; 2]]) -> Option<[usize; 2]> {
    let merit = |&[canvas_width, canvas_height]: &[usize; 2]| {
        let scale = (canvas_width as f64 / width as f64).min(canvas_height as f64 / height as f64);
        let scaled = |side: usize| (side as f64 * scale) as usize;
        let effective = (scaled(width) * scaled(height)).min(width * height);
        let waste = canvas_width * canvas_height - effective;
        (effective, std::cmp::Reverse(waste))
    };
    // `max_by_key` takes the last of equals.
    candidates
        .iter()
        .rev()
        .max_by_key(|canvas| merit(canvas))
        .copied()
}

/// Width and height of the picture when it just fits the canvas.
fn fit([width, height]: [usize; 2], [canvas_width, canvas_height]: [usize; 2]) -> [usize; 2] {
    let wide = canvas_width as f64 / width as f64;
    let high = canvas_height as f64 / height as f64;
    let scaled = |side: usize, scale: f64| (side as f64 * scale).ceil() as usize;
    if wide < high {
        [canvas_width, scaled(height, wide).min(canvas_height)]
    } else {
        [scaled(width, high).min(canvas_width), canvas_height]
    }
}

/// The columns and rows of a grid of patches that are left when the margins
/// around the picture are cut off, as much on either side.
fn kept([width, height]: [usize; 2], [columns, rows]: [usize; 2]) -> [Range<usize>; 2] {
    let middle = |grid: usize, used: usize| {
        let margin = grid.saturating_sub(used) / 2;
        margin..grid - margin
    };
    let scaled = |side: usize, scale: f64| (side as f64 * scale) as usize;
    if width as f64 / height as f64 > columns as f64 / rows as f64 {
        let used = scaled(height, columns as f64 / width as f64);
        [0..columns, middle(rows, used)]
    } else {
        let used = scaled(width, rows as f64 / height as f64);
        [middle(columns, used), 0..rows]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tiles of published models.
    const CANDIDATES: [[usize; 2]; 5] =
        [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

    fn of(width: usize, height: usize) -> Geometry {
        Geometry::of([width, height], &CANDIDATES, 336, 24).expect("there are candidates")
    }

    #[test]
    fn token_counts_are_those_of_the_specification() {
        for (width, height, tokens) in [
            (672, 672, 2928),
            (640, 480, 2340),
            (640, 479, 2340),
            (480, 640, 2352),
            (640, 427, 2144),
            (300, 300, 1176),
            (640, 320, 1752),
            (1000, 300, 2182),
        ] {
            assert_eq!(of(width, height).tokens(24), tokens, "{width}x{height}");
        }
    }

    #[test]
    fn products_are_rounded_as_the_reference_rounds_them() {
        // 25 · (672 / 75) is a hair above 224 in f64.
        assert_eq!(of(25, 75).resized_px, [225, 672]);
        assert_eq!(of(88, 55).rows.len(), 14);
    }

    #[test]
    fn without_candidates_there_is_none() {
        assert_eq!(Geometry::of([10, 10], &[], 336, 24), None);
    }

    #[test]
    fn the_thinnest_pictures_have_a_place() {
        let line = of(1, 100_000);
        assert_eq!(line.canvas_px, [336, 672]);
        assert_eq!(line.resized_px, [1, 672]);
        // What the reference leaves of it is nothing but newlines.
        assert_eq!((line.columns.len(), line.tokens(24)), (0, 576 + 48));
    }

    /// A picture of distinct pixels on two tiles: every pixel of the resized
    /// picture stands where the geometry says, and the rest is black.
    #[test]
    fn views_show_the_canvas() {
        let pixels = (0..6 * 4).flat_map(|i| [i as u8 + 1, 100, 200]).collect();
        let image = Image::from_rgb(6, 4, pixels).expect("a picture");
        let geometry = Geometry::of([6, 4], &[[12, 6]], 6, 3).expect("a candidate");
        assert_eq!(geometry.resized_px, [9, 6]);
        assert_eq!(geometry.paste_px, [1, 0]);
        let views = geometry.views(&image);
        assert_eq!(views.len(), 3);
        assert_eq!(views[0], image.resize_as_pillow_13(6, 6));
        let resized = image.resize_as_pillow_13(9, 6);
        for y in 0..6 {
            for x in 0..12 {
                let tile = &views[1 + x / 6];
                let at = |image: &Image, x: usize| {
                    let start = (y * image.width() as usize + x) * 3;
                    image.pixels()[start..start + 3].to_vec()
                };
                let expected = match x.checked_sub(1) {
                    Some(x) if x < 9 => at(&resized, x),
                    _ => vec![0; 3],
                };
                assert_eq!(at(tile, x % 6), expected, "({x}, {y})");
            }
        }
    }
}
