//! Coordinates as the language model writes them: whole thousandths of the picture's sides.
//!
//! Reference: the notebooks in `data/` of SAM4MLLM's repository. Boxes are rounded, points are
//! truncated twice; what is read back ends one thousandth before the picture does. Models were
//! trained on just that, so none of it is repaired here.

/// A side of the picture in the model's units.
const UNITS: f64 = 1000.0;
/// The largest number of three digits.
const LARGEST: i32 = 999;

/// A box XYXY in pixels of a picture of `size` (height, width), in thousandths of its sides.
///
/// Halves go to the even number. Left and top are 0 at least, right and bottom 999 at most; a box
/// that lies outside of the picture keeps its other numbers, and is then no box ([`is_box`]).
pub fn quantise_box(box_px: [f64; 4], size: (usize, usize)) -> [i32; 4] {
    let [width, height] = sides(size);
    let nearest = |at: f64, side: f64| (at / side * UNITS).round_ties_even() as i32;
    let [x1, y1, x2, y2] = box_px;
    [
        nearest(x1, width).max(0),
        nearest(y1, height).max(0),
        nearest(x2, width).min(LARGEST),
        nearest(y2, height).min(LARGEST),
    ]
}

/// The pixel `(column, row)` in which a point `(x, y)` lies, and that pixel in thousandths of the
/// sides of a picture of `size` (height, width).
///
/// A point on the right or lower edge counts to the last pixel, which the reference would miss.
pub fn quantise_point(point_px: [f64; 2], size: (usize, usize)) -> ([usize; 2], [i32; 2]) {
    let sides = sides(size);
    let pixel = [0, 1].map(|axis| point_px[axis].clamp(0.0, sides[axis] - 1.0).trunc());
    let point_norm = [0, 1].map(|axis| (pixel[axis] / sides[axis] * UNITS) as i32);
    (pixel.map(|at| at as usize), point_norm)
}

/// A box XYXY in thousandths, in pixels of a picture of `size` (height, width).
pub fn box_to_px([x1, y1, x2, y2]: [i32; 4], size: (usize, usize)) -> [f64; 4] {
    let [x1, y1] = point_to_px([x1, y1], size);
    let [x2, y2] = point_to_px([x2, y2], size);
    [x1, y1, x2, y2]
}

/// A point `(x, y)` in thousandths, in pixels of a picture of `size` (height, width).
pub fn point_to_px(point_norm: [i32; 2], size: (usize, usize)) -> [f64; 2] {
    let sides = sides(size);
    [0, 1].map(|axis| f64::from(point_norm[axis]) / UNITS * sides[axis])
}

/// Whether a box XYXY has an area.
pub fn is_box([x1, y1, x2, y2]: [i32; 4]) -> bool {
    x1 < x2 && y1 < y2
}

/// Width and height; 1 at least, so that nothing is divided by zero.
fn sides((height, width): (usize, usize)) -> [f64; 2] {
    [width.max(1) as f64, height.max(1) as f64]
}
