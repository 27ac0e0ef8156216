//! The outline of an object as smooth closed curves, from its probabilities.
//!
//! Marching squares (Lorensen and Cline, 1987, in two dimensions): between two
//! neighbouring values the curve crosses where their straight line does, so it
//! is far smoother than the mask's staircase of pixels, and agrees with it.

/// Probabilities row by row, `side` squared.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    /// The values, each at the middle of its cell.
    pub(crate) values: &'a [f32],
    /// Cells along each axis.
    pub(crate) side: usize,
}

/// A closed curve.
pub(super) struct Loop {
    /// Points `(x, y)` in shares of the picture's width and height, in order; the last is joined to the first.
    pub(super) points: Vec<(f32, f32)>,
    /// Enclosed share of the picture: positive around foreground, negative around a hole.
    pub(super) area: f32,
}

/// What a curve of fewer points keeps: smoothed, it would shrink to nothing.
const SHORTEST_SMOOTHED: usize = 12;

impl Field<'_> {
    /// Whether each cell is foreground.
    pub(super) fn bits(&self) -> impl Iterator<Item = bool> + '_ {
        self.values.iter().map(|&p| p >= refseg::mask::THRESHOLD)
    }

    /// All outlines: one loop around each piece, one around each hole.
    pub(super) fn loops(&self) -> Vec<Loop> {
        let mut next = self.links();
        let mut loops = Vec::new();
        for start in 0..next.len() {
            let mut points = Vec::new();
            let mut at = start;
            while let Some(following) = next[at].take() {
                points.push(self.crossing(at));
                at = following;
            }
            if points.is_empty() {
                continue;
            }
            if points.len() >= SHORTEST_SMOOTHED {
                points = averaged(&averaged(&points));
            }
            let area = enclosed(&points);
            loops.push(Loop { points, area });
        }
        loops
    }

    /// For each edge between neighbouring values, the edge where the curve through it crosses next.
    ///
    /// Seen along the curve, the foreground lies on the right.
    fn links(&self) -> Vec<Option<usize>> {
        let columns = self.columns();
        let mut next = vec![None; 2 * columns * columns];
        for row in 0..columns - 1 {
            for column in 0..columns - 1 {
                let at = |r: usize, c: usize| self.value(row + r, column + c);
                // Clockwise from the upper left, as are the edges from the top.
                let corners = [at(0, 0), at(0, 1), at(1, 1), at(1, 0)];
                let inside = corners.map(|p| p >= refseg::mask::THRESHOLD);
                if inside.iter().all(|&i| i == inside[0]) {
                    continue;
                }
                let cell = row * columns + column;
                let edges = [
                    2 * cell,
                    2 * (cell + 1) + 1,
                    2 * (cell + columns),
                    2 * cell + 1,
                ];
                // Two opposite corners are one piece if the middle belongs to them.
                let joined = corners.iter().sum::<f32>() / 4.0 >= refseg::mask::THRESHOLD;
                let is_saddle = inside[0] == inside[2] && inside[1] == inside[3];
                for leaving in 0..4 {
                    if !inside[leaving] || inside[(leaving + 1) % 4] {
                        continue;
                    }
                    let enters = |edge: &usize| !inside[*edge % 4] && inside[(*edge + 1) % 4];
                    let entering = if is_saddle && !joined {
                        (leaving + 1..leaving + 4).rev().find(enters)
                    } else {
                        (leaving + 1..leaving + 4).find(enters)
                    };
                    next[edges[leaving]] = entering.map(|edge| edges[edge % 4]);
                }
            }
        }
        next
    }

    /// Where the curve crosses an edge.
    fn crossing(&self, edge: usize) -> (f32, f32) {
        let columns = self.columns();
        let (row, column) = (edge / 2 / columns, edge / 2 % columns);
        let is_upright = edge % 2 == 1;
        let (a, b) = if is_upright {
            (self.value(row, column), self.value(row + 1, column))
        } else {
            (self.value(row, column), self.value(row, column + 1))
        };
        let along = (refseg::mask::THRESHOLD - a) / (b - a);
        // Cell `i` of the field is `i + 1` here and has its middle at `i + 0.5`.
        let share = |at: f32| ((at - 0.5) / self.side as f32).clamp(0.0, 1.0);
        let (x, y) = (column as f32, row as f32);
        if is_upright {
            (share(x), share(y + along))
        } else {
            (share(x + along), share(y))
        }
    }

    /// Values along each axis with a margin of background, which closes every curve.
    fn columns(&self) -> usize {
        self.side + 2
    }

    fn value(&self, row: usize, column: usize) -> f32 {
        let cells = 1..=self.side;
        if cells.contains(&row) && cells.contains(&column) {
            self.values[(row - 1) * self.side + column - 1]
        } else {
            0.0
        }
    }
}

/// The sum of cross products is twice the area; clockwise on screen is positive.
fn enclosed(points: &[(f32, f32)]) -> f32 {
    let next = points.iter().cycle().skip(1);
    let cross = |(a, b): (&(f32, f32), &(f32, f32))| a.0 * b.1 - b.0 * a.1;
    points.iter().zip(next).map(cross).sum::<f32>() / 2.0
}

/// Each point replaced by a mean with its neighbours, which takes out the network's finest grain.
fn averaged(points: &[(f32, f32)]) -> Vec<(f32, f32)> {
    let count = points.len();
    let mean = |i: usize| {
        let (a, b, c) = (
            points[(i + count - 1) % count],
            points[i],
            points[(i + 1) % count],
        );
        let mix = |a: f32, b: f32, c: f32| (a + 2.0 * b + c) / 4.0;
        (mix(a.0, b.0, c.0), mix(a.1, b.1, c.1))
    };
    (0..count).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas(rows: &[&str]) -> Vec<f32> {
        let values: Vec<f32> = rows
            .concat()
            .bytes()
            .map(|byte| if byte == b'#' { 1.0 } else { 0.0 })
            .collect();
        let side = rows.len();
        let loops = Field {
            values: &values,
            side,
        }
        .loops();
        let mut areas: Vec<f32> = loops
            .iter()
            .map(|l| l.area * (side * side) as f32)
            .collect();
        areas.sort_by(f32::total_cmp);
        areas
    }

    #[test]
    fn pieces_and_holes_have_a_loop_each() {
        let areas = areas(&["......", ".####.", ".#..#.", ".####.", "......", "....#."]);
        assert_eq!(areas.len(), 3);
        assert!(
            areas[0] < -0.5 && areas[0] > -2.0,
            "a hole of two pixels: {areas:?}"
        );
        assert!(
            (areas[1] - 0.5).abs() < 1e-3,
            "one pixel is a diamond: {areas:?}"
        );
        assert!((9.5..11.6).contains(&areas[2]), "{areas:?}");
    }

    #[test]
    fn pixels_that_touch_at_corners_are_one_piece_if_their_middle_is() {
        // The mean of the four is exactly one half.
        assert_eq!(areas(&["#...", ".#..", "....", "...."]).len(), 1);
        let values = [0.9, 0.0, 0.0, 0.9];
        assert_eq!(
            Field {
                values: &values,
                side: 2
            }
            .loops()
            .len(),
            2
        );
    }

    #[test]
    fn a_full_picture_is_outlined_at_its_border_and_nothing_has_no_outline() {
        let all = Field {
            values: &[1.0; 64],
            side: 8,
        }
        .loops();
        assert_eq!(all.len(), 1);
        assert!(all[0].area > 0.95 && all[0].area <= 1.0, "{}", all[0].area);
        assert!(
            Field {
                values: &[0.1; 64],
                side: 8
            }
            .loops()
            .is_empty()
        );
    }

    #[test]
    fn a_straight_edge_lies_where_the_probabilities_say() {
        let values: Vec<f32> = (0..256)
            .map(|i| if i % 16 < 8 { 1.0 } else { 0.25 })
            .collect();
        let field = Field {
            values: &values,
            side: 16,
        };
        let middle = field.loops().remove(0).points;
        // From 1 at 7.5 cells to 0.25 at 8.5 cells: one half at 8.1667.
        let edge = 8.166_667 / 16.0;
        assert!(
            middle
                .iter()
                .any(|p| (p.0 - edge).abs() < 1e-4 && (p.1 - 0.5).abs() < 0.1)
        );
    }
}
