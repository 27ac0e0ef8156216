//! Labels for prompt-point generation: which points mask an object well?
//!
//! Paper: 64 groups of two points on the object and one beside it are drawn in its box, Segment
//! Anything masks each, and one of the 16 with the best IoU becomes the label. What the paper
//! leaves open: the network gets the box too, as in use; a group is picked anew in each epoch;
//! where a box has no pixel beside the object, the point comes from a box a fifth larger.

use refseg::{
    mask::{Mask, MaskError},
    random::SplitMix64,
    sam::{Label, Prompt},
    sam4mllm::{PromptedObject, is_box, quantise_box, quantise_point, sam_prompt},
};

use super::{Object, write::label};

/// Groups drawn for an object.
pub const GROUPS: usize = 64;
/// Groups kept, of which one is the label.
pub const GROUPS_KEPT: usize = 16;
/// Points on the object in each group.
const ON: usize = 2;
/// By how much of its sides a box without a pixel beside the object is enlarged.
const ENLARGED: f64 = 0.2;

/// Draws `count` groups of points for an object in a picture of `size` (height, width): two on it,
/// one beside it, each a pixel of its box.
///
/// None are drawn if the box has no area or no pixel of the object. An object that fills even the
/// enlarged box gets no point beside it.
///
/// # Panics
/// If the mask is not of the picture's size.
pub fn draw_groups(
    object: &Object,
    size: (usize, usize),
    count: usize,
    random: &mut SplitMix64,
) -> Vec<PromptedObject> {
    let box_norm = quantise_box(object.box_px, size);
    let (on, mut beside) = pixels(object, object.box_px, size);
    if on.is_empty() || !is_box(box_norm) {
        return Vec::new();
    }
    if beside.is_empty() {
        (_, beside) = pixels(object, enlarged(object.box_px), size);
    }
    let mut point = |from: &[[usize; 2]], label| {
        let pixel = from[random.below(from.len())].map(|at| at as f64);
        (quantise_point(pixel, size).1, label)
    };
    let group = |_| {
        let mut points_norm: Vec<_> = (0..ON).map(|_| point(&on, Label::Foreground)).collect();
        if !beside.is_empty() {
            points_norm.push(point(&beside, Label::Background));
        }
        PromptedObject {
            box_norm,
            points_norm,
        }
    };
    (0..count).map(group).collect()
}

/// The `kept` groups with which Segment Anything masks the object best, best first.
///
/// `segment` masks all prompts at once, each with the mask that the network itself thinks best. Of
/// equally good groups the first are kept.
///
/// # Errors
/// Whatever `segment` fails with, and if its masks are not of the object's size.
pub fn best_groups<E: From<MaskError>>(
    object: &Object,
    groups: Vec<PromptedObject>,
    kept: usize,
    segment: impl FnOnce(&[Prompt]) -> Result<Vec<Mask>, E>,
) -> Result<Vec<PromptedObject>, E> {
    let size = (object.mask.height(), object.mask.width());
    let prompt = |group: &PromptedObject| sam_prompt(group.box_norm, &group.points_norm, size);
    let prompts: Vec<Prompt> = groups.iter().map(prompt).collect();
    let mut ranked = Vec::with_capacity(groups.len());
    for (group, mask) in groups.into_iter().zip(segment(&prompts)?) {
        let (intersection, union) = mask.intersection_union(&object.mask)?;
        let iou = intersection as f64 / union.max(1) as f64;
        ranked.push((iou, group));
    }
    ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    ranked.truncate(kept);
    Ok(ranked.into_iter().map(|(_, group)| group).collect())
}

/// The pixels `(column, row)` of a box: those on the object, and those beside it.
fn pixels(
    object: &Object,
    [x1, y1, x2, y2]: [f64; 4],
    (height, width): (usize, usize),
) -> (Vec<[usize; 2]>, Vec<[usize; 2]>) {
    // A pixel belongs to the box if its centre lies in it.
    let within = |from: f64, to: f64, side: usize| {
        let first = |edge: f64| (edge - 0.5).ceil().clamp(0.0, side as f64) as usize;
        first(from)..first(to)
    };
    within(y1, y2, height)
        .flat_map(|row| within(x1, x2, width).map(move |column| [column, row]))
        .partition(|&pixel| label(object, pixel) == Label::Foreground)
}

fn enlarged([x1, y1, x2, y2]: [f64; 4]) -> [f64; 4] {
    let (dx, dy) = ((x2 - x1) * ENLARGED / 2.0, (y2 - y1) * ENLARGED / 2.0);
    [x1 - dx, y1 - dy, x2 + dx, y2 + dy]
}
