//! Questions and answers about a picture, packed into conversations.

use refseg::{
    random::SplitMix64,
    sam::Label,
    sam4mllm::{
        Method, PromptedObject, boxes_answer, first_question, is_box, labels_answer,
        objects_answer, point_to_px, quantise_box, quantise_point, second_question,
    },
};

use super::{Described, Object, Recipe, Said, Spread, Turn, poisson_disk, shuffle};

/// The conversations about a picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Each a list of turns.
    pub conversations: Vec<Vec<Turn>>,
    /// Indices of expressions that are in none of them: too long even alone, beyond the most
    /// conversations, or meaning objects of which none can be written down (with PPG, not all).
    pub left_out: Vec<usize>,
}

/// Writes the conversations about a picture: its expressions in random order, as many to a
/// conversation as the recipe lets.
///
/// `tokens` counts what a conversation takes in the layout of the language model, where the picture
/// counts as the text that stands for it. A conversation ends before the expression with which it
/// would take too many. An expression that takes too many alone loses questions about points, the
/// last first.
///
/// # Panics
/// If a mask is not of the picture's size, or an expression means an object that does not exist.
pub fn write(
    described: &Described,
    recipe: &Recipe,
    random: &mut SplitMix64,
    tokens: &dyn Fn(&[Turn]) -> usize,
) -> Written {
    let mut order: Vec<usize> = (0..described.expressions.len()).collect();
    shuffle(&mut order, random);
    let fits = |turns: &[Turn]| tokens(turns) <= recipe.tokens;
    let most = recipe.conversations.unwrap_or(usize::MAX);
    // With the number of expressions in each.
    let mut conversations: Vec<(Vec<Turn>, usize)> = Vec::new();
    let mut left_out = Vec::new();
    for index in order {
        let turns = turns(described, &described.expressions[index], recipe, random);
        let Some(turns) = turns.and_then(|turns| shortened(turns, &fits)) else {
            left_out.push(index);
            continue;
        };
        if let Some((last, expressions)) = conversations.last_mut()
            && *expressions < recipe.expressions
        {
            let together = [&last[..], &turns].concat();
            if fits(&together) {
                *last = together;
                *expressions += 1;
                continue;
            }
        }
        if conversations.len() < most {
            conversations.push((turns, 1));
        } else {
            left_out.push(index);
        }
    }
    Written {
        conversations: conversations.into_iter().map(|(turns, _)| turns).collect(),
        left_out,
    }
}

/// What is asked about an expression; nothing if it means objects, but none that can be written down.
fn turns(
    described: &Described,
    said: &Said,
    recipe: &Recipe,
    random: &mut SplitMix64,
) -> Option<Vec<Turn>> {
    let size = described.size;
    let objects = said.objects.iter().map(|&index| &described.objects[index]);
    let objects: Vec<(&Object, [i32; 4])> = objects
        .map(|object| (object, quantise_box(object.box_px, size)))
        .filter(|&(_, box_norm)| is_box(box_norm))
        .collect();
    if objects.is_empty() && !said.objects.is_empty() {
        return None;
    }
    let count = recipe.count.unwrap_or(said.count);
    let question = first_question(recipe.method, &said.phrase, count);
    match recipe.method {
        Method::Pqpp => {
            let boxes: Vec<[i32; 4]> = objects.iter().map(|&(_, box_norm)| box_norm).collect();
            let answer = boxes_answer(&boxes);
            let mut turns = Vec::new();
            for &(object, box_norm) in &objects {
                if recipe.probed >= 1.0 || random.uniform() < recipe.probed {
                    turns.push(about_points(object, box_norm, size, recipe, random));
                }
            }
            shuffle(&mut turns, random);
            turns.insert(0, Turn { question, answer });
            Some(turns)
        }
        Method::Ppg => {
            let group = |(object, _): &(&Object, _)| match object.groups.len() {
                0 => None,
                groups => Some(object.groups[random.below(groups)].clone()),
            };
            // Half an answer would teach to overlook objects.
            let groups: Vec<PromptedObject> = objects.iter().map(group).collect::<Option<_>>()?;
            let answer = objects_answer(&groups);
            Some(vec![Turn { question, answer }])
        }
    }
}

/// Which of some points in an object's box are on it.
fn about_points(
    object: &Object,
    box_norm: [i32; 4],
    size: (usize, usize),
    recipe: &Recipe,
    random: &mut SplitMix64,
) -> Turn {
    let [x1, y1, x2, y2] = object.box_px;
    let labelled = |[u, v]: [f64; 2]| {
        let place = [x1 + u * (x2 - x1), y1 + v * (y2 - y1)];
        let (pixel, point_norm) = quantise_point(place, size);
        (point_norm, label(object, pixel))
    };
    let drawn = |shares: Vec<[f64; 2]>| shares.into_iter().map(labelled).unzip();
    let (points, labels): (Vec<_>, Vec<_>) = match recipe.spread {
        Spread::Uniform => {
            let count = recipe.points.draw(random);
            let shares = (0..count).map(|_| [random.uniform(), random.uniform()]);
            drawn(shares.collect())
        }
        Spread::Poisson { radius, candidates } => {
            let count = recipe.points.draw(random);
            let mut places = poisson_disk(radius, candidates, random);
            shuffle(&mut places, random);
            places.truncate(count);
            drawn(places)
        }
        // In use, thousandths come first, and the picture's pixels after them.
        Spread::Probes(pattern) => {
            let points = pattern.points(box_norm, random).into_iter();
            let asked = points.map(|at| (at, label(object, pixel_at(at, size))));
            asked.unzip()
        }
    };
    Turn {
        question: second_question(recipe.wording, box_norm, &points),
        answer: labels_answer(&labels),
    }
}

/// The pixel `(column, row)` under a point in thousandths.
fn pixel_at(point_norm: [i32; 2], size: (usize, usize)) -> [usize; 2] {
    quantise_point(point_to_px(point_norm, size), size).0
}

/// What the mask says of a pixel `(column, row)`.
pub(super) fn label(object: &Object, [column, row]: [usize; 2]) -> Label {
    if object.mask.bits()[row * object.mask.width() + column] {
        Label::Foreground
    } else {
        Label::Background
    }
}

/// The turns without the last ones, so that they fit; nothing if even the first does not.
fn shortened(mut turns: Vec<Turn>, fits: &dyn Fn(&[Turn]) -> bool) -> Option<Vec<Turn>> {
    while !fits(&turns) {
        turns.pop();
        if turns.is_empty() {
            return None;
        }
    }
    Some(turns)
}
