use std::collections::HashSet;

use refseg::{
    mask::MaskError,
    sam::{Label, Prompt},
    sam4mllm::{is_box, quantise_box, read_boxes, read_labels, read_objects},
};

use super::*;

/// Height and width.
const SIZE: (usize, usize) = (120, 200);

#[test]
fn points_keep_their_distance_and_fill_the_square() {
    let mut counts = Vec::new();
    for seed in 0..20 {
        let points = poisson_disk(0.1, 100, &mut SplitMix64::new(seed));
        for (i, [x1, y1]) in points.iter().enumerate() {
            assert!((0.0..1.0).contains(x1) && (0.0..1.0).contains(y1));
            for [x2, y2] in &points[..i] {
                assert!((x1 - x2).hypot(y1 - y2) >= 0.1);
            }
        }
        counts.push(points.len());
        assert_eq!(points, poisson_disk(0.1, 100, &mut SplitMix64::new(seed)));
    }
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    assert!((58.0..=72.0).contains(&mean), "{counts:?}");
    assert!(
        counts.iter().all(|&count| count >= 20),
        "as many as any recipe takes"
    );
    assert_eq!(poisson_disk(0.1, 7, &mut SplitMix64::new(0)).len(), 7);
    assert_eq!(poisson_disk(0.1, 0, &mut SplitMix64::new(0)), [[0.0; 2]; 0]);
    // There is room for one.
    assert_eq!(poisson_disk(2.0, 100, &mut SplitMix64::new(0)).len(), 1);
}

#[test]
fn the_number_of_points_is_as_it_should_be_distributed() {
    let mut random = SplitMix64::new(1);
    let PointCount::Normal { .. } = Recipe::code().points else {
        panic!("the code's numbers are normally distributed");
    };
    let counts: Vec<usize> = (0..20_000)
        .map(|_| Recipe::code().points.draw(&mut random))
        .collect();
    assert_eq!(
        (counts.iter().min(), counts.iter().max()),
        (Some(&1), Some(&20))
    );
    // Cutting to a whole number takes half a point off the mean of ten.
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    assert!((mean - 9.5).abs() < 0.1, "{mean}");
    assert_eq!(Recipe::paper().points.draw(&mut random), 10);
}

#[test]
fn points_are_in_the_box_and_labelled_by_the_mask() {
    let described = described();
    for recipe in [Recipe::code(), Recipe::paper(), Recipe::repaired()] {
        for seed in 0..10 {
            let mut random = SplitMix64::new(seed);
            let written = write(&described, &recipe, &mut random, &no_tokens);
            assert_eq!(written.left_out, [0; 0]);
            for turn in written.conversations.iter().flatten() {
                check_points(&described, turn);
            }
        }
    }
}

/// Holds a second question to the picture: thousandths are pixels here, five or less than nine apart.
fn check_points(described: &Described, turn: &Turn) {
    let Some((_, listed)) = turn.question.split_once("]:\n") else {
        return;
    };
    let box_norm = read_boxes(&turn.question).said[0];
    let object = described
        .objects
        .iter()
        .find(|object| quantise_box(object.box_px, SIZE) == box_norm);
    let object = object.expect("the box of an object");
    let labels = read_labels(&turn.answer);
    assert!(labels.is_clear());
    let points: Vec<&str> = listed.split(' ').collect();
    assert_eq!(points.len(), labels.said.len());
    assert!((1..=20).contains(&points.len()));
    for (point, label) in points.iter().zip(labels.said) {
        let numbers: Vec<i32> = point
            .trim_matches(['(', ')'])
            .split(',')
            .map(|number| number.parse().expect("a number"))
            .collect();
        // Back to the pixel that was truncated: 5 thousandths are a column, 8⅓ a row.
        let pixel = [(numbers[0] + 4) / 5, (numbers[1] * 3 + 24) / 25];
        let [column, row] = pixel.map(|at| at as usize);
        let on = object.mask.bits()[row * SIZE.1 + column];
        assert_eq!(label == Label::Foreground, on, "{point}");
        let [x1, y1, x2, y2] = object.box_px;
        assert!((x1.floor()..=x2).contains(&(column as f64)), "{point}");
        assert!((y1.floor()..=y2).contains(&(row as f64)), "{point}");
    }
}

#[test]
fn conversations_say_what_the_recipe_says() {
    let described = described();
    let mut random = SplitMix64::new(0);
    let official = write(&described, &Recipe::code(), &mut random, &no_tokens);
    let questions: Vec<&str> = questions(&official);
    assert!(
        questions
            .iter()
            .all(|q| !q.contains("describes") || q.contains("describes (0+):"))
    );
    assert!(
        questions
            .iter()
            .all(|q| !q.contains("Check") || q.contains("with bounding box ["))
    );

    let mut random = SplitMix64::new(0);
    let ours = write(&described, &Recipe::repaired(), &mut random, &no_tokens);
    let turns: Vec<&Turn> = ours.conversations.iter().flatten().collect();
    let of = |phrase: &str| {
        let quoted = format!("\"{phrase}\".");
        turns
            .iter()
            .position(|turn| turn.question.ends_with(&quoted))
            .expect("the phrase")
    };
    assert!(turns[of("disc")].question.contains("(1):"));
    assert_eq!(turns[of("disc")].answer, "[200,250,400,583]");
    assert_eq!(
        turns[of("both")].answer,
        "[200,250,400,583] [500,083,700,917]"
    );
    // A question about the points of each, and none where there is nothing.
    assert!(
        turns[of("both") + 1]
            .question
            .starts_with("Check if the points")
    );
    assert!(
        turns[of("both") + 2]
            .question
            .contains("on the object with coordinates [")
    );
    assert_eq!(turns[of("nothing")].answer, "No object found.");
    assert!(turns[of("nothing")].question.contains("(0+):"));
    let after = turns.get(of("nothing") + 1);
    assert!(after.is_none_or(|turn| turn.question.starts_with("Please")));
}

/// Of the first two points about an object, in shares of its box: Bridson's algorithm draws
/// neighbours one after the other, but the model is not to be asked about neighbours only.
#[test]
fn points_are_spread_over_the_box() {
    let mut described = described();
    described.expressions.truncate(1);
    for recipe in [Recipe::code(), Recipe::paper()] {
        let (mut distances, mut upper_right, mut count) = (0.0, 0, 0);
        for epoch in 0..200 {
            let mut random = recipe.stream("7", epoch);
            let written = write(&described, &recipe, &mut random, &no_tokens);
            let question = &written.conversations[0][1].question;
            let points = question.split(['(', ')']).filter_map(|pair| {
                let (x, y) = pair.split_once(',')?;
                let [x, y]: [f64; 2] = [x.parse().ok()?, y.parse().ok()?];
                Some([(x - 200.0) / 200.0, (y - 250.0) / 333.0])
            });
            let points: Vec<[f64; 2]> = points.collect();
            upper_right += points.iter().filter(|[u, v]| *u > 0.5 && *v < 0.5).count();
            count += points.len();
            if let [[u1, v1], [u2, v2], ..] = points[..] {
                distances += (u1 - u2).hypot(v1 - v2) / 200.0;
            }
        }
        let share = upper_right as f64 / count as f64;
        assert!((0.2..0.3).contains(&share), "{share}");
        // Two points of the unit square are 0.52 apart on average.
        assert!((0.45..0.6).contains(&distances), "{distances}");
    }
}

#[test]
fn recipes_are_those_of_the_paper_and_the_code() {
    let (code, paper, repaired) = (Recipe::code(), Recipe::paper(), Recipe::repaired());
    assert_eq!(
        [code.tokens, paper.tokens, repaired.tokens],
        [1536, 2048, 1536]
    );
    assert_eq!((code.expressions, code.conversations), (5, Some(20)));
    let spread = Spread::Poisson {
        radius: 0.1,
        candidates: 100,
    };
    assert_eq!((code.spread, paper.spread), (spread, Spread::Uniform));
    assert_eq!(repaired.spread, spread);
}

#[test]
fn neither_expressions_nor_objects_keep_their_order() {
    let described = described();
    let (mut first_asked, mut first_probed) = (Vec::new(), Vec::new());
    for epoch in 0..20 {
        let recipe = Recipe::repaired();
        let mut random = recipe.stream("7", epoch);
        let turns = write(&described, &recipe, &mut random, &no_tokens)
            .conversations
            .concat();
        first_asked.push(turns[0].question.clone());
        let both = turns
            .iter()
            .position(|turn| turn.question.ends_with("\"both\"."))
            .expect("the phrase");
        let (about, _) = turns[both + 1].question.split_once(":\n").expect("points");
        first_probed.push(about.to_owned());
    }
    let distinct = |things: &[String]| things.iter().collect::<HashSet<_>>().len();
    assert_eq!((distinct(&first_asked), distinct(&first_probed)), (3, 2));
}

#[test]
fn conversations_are_packed() {
    let mut described = described();
    let said = described.expressions[0].clone();
    described.expressions = vec![said; 23];
    let count = |recipe: &Recipe, tokens: &dyn Fn(&[Turn]) -> usize| {
        let written = write(&described, recipe, &mut SplitMix64::new(3), tokens);
        let expressions = |turns: &Vec<Turn>| {
            turns
                .iter()
                .filter(|turn| turn.question.starts_with("Please"))
                .count()
        };
        let counts: Vec<usize> = written.conversations.iter().map(expressions).collect();
        (counts, written.left_out.len())
    };
    assert_eq!(count(&Recipe::code(), &no_tokens), (vec![5, 5, 5, 5, 3], 0));
    // Each expression takes two turns of 300 tokens: two fit 1,536 tokens, a third does not.
    let dear = |turns: &[Turn]| 300 * turns.len();
    let (counts, left_out) = count(&Recipe::code(), &dear);
    assert_eq!((counts, left_out), ([vec![2; 11], vec![1]].concat(), 0));
    // At most 20 conversations of one each.
    let alone = Recipe {
        expressions: 1,
        ..Recipe::code()
    };
    assert_eq!(count(&alone, &no_tokens), (vec![1; 20], 3));
    assert_eq!(
        count(
            &Recipe {
                conversations: None,
                ..alone
            },
            &no_tokens
        ),
        (vec![1; 23], 0)
    );
    // A question about points that does not fit is left away; a first question that does not, is the end.
    let one = |turns: &[Turn]| 1000 * turns.len();
    let written = write(&described, &Recipe::code(), &mut SplitMix64::new(3), &one);
    assert!(written.conversations.iter().all(|turns| turns.len() == 1));
    let none = |_: &[Turn]| 2000;
    let written = write(&described, &Recipe::code(), &mut SplitMix64::new(3), &none);
    assert_eq!(
        (written.conversations.len(), written.left_out.len()),
        (0, 23)
    );
}

#[test]
fn an_object_without_area_is_not_written_down() {
    let mut described = described();
    described.objects[0].box_px = [10.0, 10.0, 10.0, 40.0];
    let written = write(
        &described,
        &Recipe::code(),
        &mut SplitMix64::new(0),
        &no_tokens,
    );
    // "disc" means nothing else, "both" still means the other.
    assert_eq!(written.left_out, [0]);
    let answers = written
        .conversations
        .iter()
        .flatten()
        .map(|turn| turn.answer.as_str());
    assert!(
        answers
            .into_iter()
            .any(|answer| answer == "[500,083,700,917]")
    );
}

#[test]
fn epochs_differ_and_seeds_repeat() {
    let described = described();
    let recipe = Recipe::repaired();
    let epoch = |recipe: &Recipe, picture: &str, epoch| {
        write(
            &described,
            recipe,
            &mut recipe.stream(picture, epoch),
            &no_tokens,
        )
    };
    assert_eq!(epoch(&recipe, "7", 0), epoch(&recipe, "7", 0));
    assert_ne!(epoch(&recipe, "7", 0), epoch(&recipe, "7", 1));
    assert_ne!(epoch(&recipe, "7", 0), epoch(&recipe, "8", 0));
    let other = Recipe {
        seed: 1,
        ..recipe.clone()
    };
    assert_ne!(epoch(&recipe, "7", 0), epoch(&other, "7", 0));
}

#[test]
fn groups_have_two_points_on_the_object_and_one_beside_it() {
    let described = described();
    for object in &described.objects {
        let groups = draw_groups(object, SIZE, GROUPS, &mut SplitMix64::new(5));
        assert_eq!(groups.len(), 64);
        assert_ne!(groups[0], groups[1]);
        for group in groups {
            assert_eq!(group.box_norm, quantise_box(object.box_px, SIZE));
            assert!(is_box(group.box_norm));
            let on: Vec<bool> = group
                .points_norm
                .iter()
                .map(|([x, y], label)| {
                    let pixel = [((x + 4) / 5) as usize, ((y * 3 + 24) / 25) as usize];
                    assert_eq!(super::write::label(object, pixel), *label);
                    *label == Label::Foreground
                })
                .collect();
            assert_eq!(on, [true, true, false]);
        }
    }
}

#[test]
fn where_a_box_is_full_the_point_lies_beside_it() {
    let full = rectangle([40, 30, 60, 60]);
    let groups = draw_groups(&full, SIZE, 64, &mut SplitMix64::new(5));
    for group in &groups {
        let ([x, y], label) = group.points_norm[2];
        assert_eq!(label, Label::Background);
        let (x, y) = (f64::from(x) / 5.0, f64::from(y) * 0.12);
        assert!(
            (37.5..62.5).contains(&x) && (26.0..63.5).contains(&y),
            "{x} {y}"
        );
    }
    // Nothing lies beside an object that fills the picture.
    let all = rectangle([0, 0, 200, 120]);
    let groups = draw_groups(&all, SIZE, 64, &mut SplitMix64::new(5));
    assert!(groups.iter().all(|group| group.points_norm.len() == 2));
    // One pixel is enough, none is not.
    let single = rectangle([40, 30, 41, 31]);
    assert_eq!(
        draw_groups(&single, SIZE, 3, &mut SplitMix64::new(5)).len(),
        3
    );
    let mut empty = rectangle([40, 30, 60, 60]);
    empty.mask = Mask::empty(SIZE.0, SIZE.1).expect("a mask");
    assert_eq!(draw_groups(&empty, SIZE, 3, &mut SplitMix64::new(5)), []);
}

/// In place of Segment Anything: everything to the right of a prompt's first point.
#[test]
fn the_groups_that_mask_best_are_kept() -> Result<(), MaskError> {
    let object = rectangle([40, 30, 60, 60]);
    let groups = draw_groups(&object, SIZE, GROUPS, &mut SplitMix64::new(5));
    let right_of = |prompt: &Prompt| {
        let first = prompt.points[0].at_px[0].ceil() as usize;
        rectangle([first, 30, 60, 60]).mask
    };
    let mut calls = 0;
    let kept = best_groups(&object, groups.clone(), GROUPS_KEPT, |prompts| {
        calls += 1;
        assert!(
            prompts
                .iter()
                .all(|p| p.box_px.is_some() && p.points.len() == 3)
        );
        Ok::<_, MaskError>(prompts.iter().map(right_of).collect())
    })?;
    assert_eq!((calls, kept.len()), (1, 16));
    let first = |group: &PromptedObject| group.points_norm[0].0[0];
    let mut expected: Vec<i32> = groups.iter().map(first).collect();
    expected.sort_unstable();
    assert_eq!(kept.iter().map(first).collect::<Vec<_>>(), expected[..16]);
    Ok(())
}

/// A mask that covers the object and everything else is no good one.
#[test]
fn groups_are_ranked_by_iou() -> Result<(), MaskError> {
    let object = rectangle([40, 30, 60, 60]);
    let groups = draw_groups(&object, SIZE, 2, &mut SplitMix64::new(5));
    let masks = [[0, 0, 200, 120], [50, 30, 60, 60]].map(|corners| rectangle(corners).mask);
    let kept = best_groups(&object, groups.clone(), 1, |_| {
        Ok::<_, MaskError>(masks.to_vec())
    })?;
    assert_eq!(kept, groups[1..]);
    Ok(())
}

#[test]
fn prompts_are_taught_at_once_by_ppg() {
    let mut described = described();
    let recipe = Recipe {
        method: Method::Ppg,
        ..Recipe::repaired()
    };
    let written = write(&described, &recipe, &mut SplitMix64::new(0), &no_tokens);
    // Without groups there is nothing to teach but that there is nothing.
    assert_eq!(written.left_out.len(), 2);
    for object in &mut described.objects {
        object.groups = draw_groups(object, SIZE, 16, &mut SplitMix64::new(1));
    }
    let written = write(&described, &recipe, &mut SplitMix64::new(0), &no_tokens);
    assert_eq!(written.left_out, [0; 0]);
    let turns: Vec<&Turn> = written.conversations.iter().flatten().collect();
    assert_eq!(turns.len(), 3);
    for turn in &turns {
        assert!(turn.question.contains("coordinate and prompt points of"));
        assert!(read_objects(&turn.answer).is_clear());
    }
    let both = turns
        .iter()
        .find(|turn| turn.question.ends_with("\"both\"."))
        .expect("both");
    let said = read_objects(&both.answer).said;
    assert_eq!(said.len(), 2);
    for (said, object) in said.iter().zip(&described.objects) {
        assert!(object.groups.contains(said));
    }
    // Another epoch picks others.
    let again = write(&described, &recipe, &mut SplitMix64::new(1), &no_tokens);
    let turns = again.conversations.concat();
    assert!(turns.iter().all(|turn| turn.answer != both.answer));
}

fn no_tokens(_: &[Turn]) -> usize {
    0
}

fn questions(written: &Written) -> Vec<&str> {
    let turns = written.conversations.iter().flatten();
    turns.map(|turn| turn.question.as_str()).collect()
}

/// A disc with its box, and a box that its object fills by half; three phrases.
fn described() -> Described {
    let disc = |x: f64, y: f64| (x - 60.0).hypot(y - 50.0) < 20.0;
    let stripes =
        |x: f64, y: f64| (100.0..140.0).contains(&x) && y > 10.0 && y < 110.0 && x % 8.0 < 4.0;
    let mut objects = vec![drawn([40.0, 30.0, 80.0, 70.0], disc)];
    objects.push(drawn([100.0, 10.0, 140.0, 110.0], stripes));
    let said = |phrase: &str, objects: &[usize], count| Said {
        phrase: phrase.to_owned(),
        objects: objects.to_vec(),
        count,
    };
    Described {
        size: SIZE,
        objects,
        expressions: vec![
            said("disc", &[0], AnswerCount::One),
            said("both", &[0, 1], AnswerCount::OneOrMore),
            said("nothing", &[], AnswerCount::ZeroOrMore),
        ],
    }
}

fn rectangle([x1, y1, x2, y2]: [usize; 4]) -> Object {
    let edges = [x1, y1, x2, y2].map(|edge| edge as f64);
    drawn(edges, |x, y| {
        (edges[0]..edges[2]).contains(&x) && (edges[1]..edges[3]).contains(&y)
    })
}

/// An object that covers the pixels whose centres are on it.
fn drawn(box_px: [f64; 4], on: impl Fn(f64, f64) -> bool) -> Object {
    let centre = |at: usize| at as f64 + 0.5;
    let bits = (0..SIZE.0 * SIZE.1)
        .map(|pixel| on(centre(pixel % SIZE.1), centre(pixel / SIZE.1)))
        .collect();
    Object {
        box_px,
        mask: Mask::from_bits(SIZE.0, SIZE.1, bits).expect("a mask"),
        groups: Vec::new(),
    }
}
