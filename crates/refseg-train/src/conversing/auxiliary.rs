//! Heads that help a small language model to find what it is asked for, and are then dropped.
//!
//! A box is said number by number, and a number's token says nothing about the picture until the
//! model has found the object by itself: the cross-entropy of the text alone stays where the
//! frequency of numbers puts it. These heads ask the state from which an answer begins directly
//! which of the picture's tokens are meant, and where the first box is. None of them is part of the
//! model that a run leaves behind.

use burn::tensor::Tensor;
use refseg::{
    nn::{Linear, TensorSource, Tensors},
    sam4mllm::{is_box, read_boxes},
    weights::WeightsError,
};

use crate::{
    losses::{box_miss, pointing},
    tensors::{floats, indices},
};

/// Prefix of the heads' keys.
const PREFIX: &str = "auxiliary";
/// Width in which answers and the picture's tokens are compared.
const MATCH_WIDTH: usize = 64;
/// What the box counts beside the tokens: twice what it did when the built-in model was trained.
const BOX_WEIGHT: f64 = 4.0;

/// The helper heads.
#[derive(Debug, Clone)]
pub struct Auxiliary {
    /// Key `answer`: D → [`MATCH_WIDTH`], the state from which an answer begins.
    answer: Linear,
    /// Key `read`: D → [`MATCH_WIDTH`], the picture's tokens as the language model has read them.
    read: Linear,
    /// Key `seen`: D → [`MATCH_WIDTH`], the picture's tokens as the projector leaves them.
    seen: Linear,
    /// Key `box`: D → 4.
    bounds: Linear,
}

/// What an answer points at.
#[derive(Debug, Clone, PartialEq)]
pub struct Aim {
    /// Boxes XYXY in thousandths of the picture's sides; none if there is no such object.
    boxes_norm: Vec<[i32; 4]>,
}

impl Aim {
    /// What this answer points at: its boxes, or nothing if it says that there is no such object.
    /// `None` if it speaks of something else.
    pub fn of(answer: &str) -> Option<Self> {
        let read = read_boxes(answer);
        let is_aim = read.no_object || !read.said.is_empty();
        let boxes_norm = read.said.into_iter().filter(|&b| is_box(b)).collect();
        is_aim.then_some(Self { boxes_norm })
    }

    /// The share of each cell of a grid that its boxes cover, row by row. Where they overlap, the
    /// larger share counts.
    fn coverage(&self, grid: usize) -> Vec<f32> {
        let cell = 1000.0 / grid as f32;
        let share = |[low, high]: [i32; 2], i: usize| {
            let (start, end) = (cell * i as f32, cell * (i + 1) as f32);
            ((high as f32).min(end) - (low as f32).max(start)).max(0.0) / cell
        };
        let cells = (0..grid * grid).map(|i| {
            let boxes = self.boxes_norm.iter();
            boxes
                .map(|&[x1, y1, x2, y2]| share([x1, x2], i % grid) * share([y1, y2], i / grid))
                .fold(0.0, f32::max)
        });
        cells.collect()
    }
}

impl Auxiliary {
    /// Builds the heads from the parameters of a run; `width` is the language model's, D.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(source: &dyn TensorSource, width: usize) -> Result<Self, WeightsError> {
        let tensors = Tensors::root(source).at(PREFIX);
        let head = |name, outputs| {
            Linear::load(
                &tensors.at(name),
                [width, outputs],
                "llm_config.hidden_size",
            )
        };
        Ok(Self {
            answer: head("answer", MATCH_WIDTH)?,
            read: head("read", MATCH_WIDTH)?,
            seen: head("seen", MATCH_WIDTH)?,
            bounds: head("box", 4)?,
        })
    }

    /// Whether the states from which answers begin know what is meant, and where its first box is.
    ///
    /// # Shapes
    /// - `states`: `(n, D)`
    /// - `aims`: for each of them, the number of its picture, and what the answer points at
    /// - `seen`, `read`: `(B, G², D)`, pictures as they enter the language model and as it leaves them
    /// - returns `(1)` each: the tokens, and the box
    pub fn losses(
        &self,
        states: Tensor<2>,
        aims: &[(usize, &Aim)],
        seen: Tensor<3>,
        read: Tensor<3>,
    ) -> [Tensor<1>; 2] {
        let device = states.device();
        let [count, width] = states.dims();
        let [_, tokens, _] = seen.dims();
        let grid = tokens.isqrt();
        let pictures = indices(aims.iter().map(|(picture, _)| *picture as i64), &device);
        let coverage = aims.iter().flat_map(|(_, aim)| aim.coverage(grid));
        let coverage = floats(&coverage.collect::<Vec<_>>(), [count, 1, tokens], &device);
        let answer = self
            .answer
            .forward(states.clone().reshape([count, 1, width]));
        let matching = |tokens: Tensor<3>| {
            let tokens = tokens.select(0, pictures.clone());
            pointing(answer.clone(), tokens, coverage.clone())
        };
        let matching = matching(self.seen.forward(seen)) + matching(self.read.forward(read));

        let first = aims.iter().map(|(_, aim)| aim.boxes_norm.first().copied());
        let found: Vec<f32> = first.clone().map(|b| f32::from(b.is_some())).collect();
        let found = floats(&found, [count], &device);
        let target = first.flat_map(|b| b.unwrap_or_default().map(|at| at as f32 / 1000.0));
        let target = floats(&target.collect::<Vec<_>>(), [count, 4], &device);
        let place = box_miss(self.bounds.forward(states), target, found);
        [matching, place * BOX_WEIGHT]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use refseg::nn::Blueprint;

    use super::*;
    use crate::tensors::scalar;

    /// Heads without weights answer the same to everything: what that costs is known.
    #[test]
    fn losses_of_heads_that_know_nothing() -> Result<(), WeightsError> {
        struct Zeros;
        impl TensorSource for Zeros {
            fn tensor(
                &self,
                _: &str,
                shape: &[usize],
                _: &'static str,
            ) -> Result<Tensor<1>, WeightsError> {
                Ok(Tensor::zeros(
                    [shape.iter().product::<usize>()],
                    &Device::flex(),
                ))
            }

            fn device(&self) -> Device {
                Device::flex()
            }
        }
        let heads = Auxiliary::load(&Zeros, 8)?;
        let tokens = Tensor::<3>::ones([2, 4, 8], &Device::flex());
        let aims = [
            Aim::of("[000,000,500,500] [500,000,999,999]"),
            Aim::of("No object found."),
        ];
        let aims: Vec<(usize, &Aim)> = aims.iter().flatten().enumerate().collect();
        let states = Tensor::ones([2, 8], &Device::flex());
        let [matching, place] = heads.losses(states, &aims, tokens.clone(), tokens);
        // Each of four cells scores −2; of the first answer one and twice nearly one are meant.
        let covered = f64::from(aims[0].1.coverage(2).iter().sum::<f32>());
        let (yes, no) = ((1.0 + 2f64.exp()).ln(), (1.0 + (-2f64).exp()).ln());
        let expected = 2.0 * (4.0 * covered * yes + (8.0 - covered) * no) / 8.0;
        assert!((f64::from(scalar(&matching)) - expected).abs() < 1e-5);
        // Every side is guessed at 0.5; the answer without a box says nothing about it.
        assert!((scalar(&place) - 4.0 * 0.25).abs() < 1e-5);
        assert_eq!(
            Blueprint::of(|source| Auxiliary::load(source, 8)).map(|parts| parts.len())?,
            8
        );
        Ok(())
    }

    #[test]
    fn answers_point_at_their_boxes() {
        let aim = Aim::of("[000,000,500,250] [500,000,750,250]").expect("two boxes");
        assert_eq!(aim.coverage(2), [0.5, 0.25, 0.0, 0.0]);
        let with_points = Aim::of("[000,000,500,250](100,100,1)(300,900,0)").expect("a box");
        assert_eq!(with_points.boxes_norm, [[0, 0, 500, 250]]);
        let nothing = Aim::of("No object found.").expect("nothing is meant");
        assert_eq!(nothing.coverage(2), [0.0; 4]);
        assert_eq!(Aim::of("YesNoYes"), None);
    }
}
