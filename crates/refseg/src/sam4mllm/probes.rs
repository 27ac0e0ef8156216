//! Which points of a box the model is asked about.
//!
//! Paper: SAM4MLLM (ECCV 2024), Table 6: a 5×5 grid, 6×6, and 25 or 36 points at random.
//! Reference: the list of points in `simple_infer.ipynb`. The paper does not say where in the box
//! the points of a grid lie; here they are the centres of its cells, which is where the reference's
//! list has them, but for a shift of 0.03.

use std::str::FromStr;

use super::texts::{UnknownName, named};
use crate::random::SplitMix64;

/// Points of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbePattern {
    /// The centres of 5×5 cells: the paper's choice.
    Grid5,
    /// The centres of 6×6 cells.
    Grid6,
    /// The 15 points of the official demonstration.
    Code15,
    /// The whole list of the official demonstration, of which it uses the first half.
    Code30,
    /// 25 points at random.
    Random25,
    /// 36 points at random.
    Random36,
}

/// The reference's list: x and y in per cent of the box.
const CODE_PERCENT: [[u8; 2]; 30] = [
    [93, 70],
    [51, 89],
    [91, 90],
    [32, 32],
    [88, 10],
    [12, 28],
    [29, 52],
    [49, 49],
    [28, 12],
    [59, 60],
    [9, 48],
    [52, 29],
    [31, 92],
    [68, 13],
    [73, 73],
    [69, 53],
    [48, 9],
    [19, 18],
    [71, 93],
    [53, 69],
    [89, 50],
    [11, 88],
    [33, 72],
    [39, 41],
    [72, 33],
    [13, 68],
    [79, 82],
    [8, 8],
    [81, 22],
    [92, 30],
];

impl ProbePattern {
    /// The points `(x, y)` in a box XYXY, both in thousandths of the picture's sides.
    ///
    /// Only the patterns at random draw numbers.
    pub fn points(self, [x1, y1, x2, y2]: [i32; 4], random: &mut SplitMix64) -> Vec<[i32; 2]> {
        // In this order, in f64: models were asked about points that were rounded like this.
        let place = |share: f64, from: i32, to: i32| {
            (share * (f64::from(to) - f64::from(from)) + f64::from(from)) as i32
        };
        let offsets = self.offsets(random).into_iter();
        offsets
            .map(|[u, v]| [place(u, x1, x2), place(v, y1, y2)])
            .collect()
    }

    /// The points as shares of the box's sides.
    fn offsets(self, random: &mut SplitMix64) -> Vec<[f64; 2]> {
        match self {
            Self::Grid5 => cell_centres(5),
            Self::Grid6 => cell_centres(6),
            Self::Code15 => of_percent(&CODE_PERCENT[..15]),
            Self::Code30 => of_percent(&CODE_PERCENT),
            Self::Random25 => at_random(25, random),
            Self::Random36 => at_random(36, random),
        }
    }
}

impl FromStr for ProbePattern {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let all = [
            ("grid5", Self::Grid5),
            ("grid6", Self::Grid6),
            ("code15", Self::Code15),
            ("code30", Self::Code30),
            ("random25", Self::Random25),
            ("random36", Self::Random36),
        ];
        let expected = "`grid5`, `grid6`, `code15`, `code30`, `random25`, `random36`";
        named(all, text, expected)
    }
}

/// Row by row.
fn cell_centres(cells: u8) -> Vec<[f64; 2]> {
    let centre = |cell: u8| f64::from(2 * cell + 1) / f64::from(2 * cells);
    (0..cells)
        .flat_map(|row| (0..cells).map(move |column| [centre(column), centre(row)]))
        .collect()
}

fn of_percent(percent: &[[u8; 2]]) -> Vec<[f64; 2]> {
    let share = |percent: u8| f64::from(percent) / 100.0;
    percent.iter().map(|point| point.map(share)).collect()
}

fn at_random(count: usize, random: &mut SplitMix64) -> Vec<[f64; 2]> {
    (0..count)
        .map(|_| [(); 2].map(|()| random.uniform()))
        .collect()
}
