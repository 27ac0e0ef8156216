//! What expressions mean, object by object.

use refseg::sam4mllm::AnswerCount;
use refseg_data::{
    conversations::{Recipe, write},
    dataset::Picture,
};
use tempfile::tempdir;

use super::*;

/// Height and width.
fn size(picture: &Picture) -> (usize, usize) {
    picture.size.expect("instances.json states it")
}

/// Fixture: `mini-refcoco`, whose united masks are the official code's.
#[test]
fn objects_unite_to_what_an_expression_means() -> Done {
    let root = fixtures().join("mini-refcoco");
    for (source, split, count) in [
        (Source::GRefCoco, "train", AnswerCount::ZeroOrMore),
        (Source::GRefCoco, "val", AnswerCount::ZeroOrMore),
        (Source::RefCocoG, "val", AnswerCount::One),
    ] {
        let data = Dataset::open(&source, split, &root)?;
        let mut several = 0;
        for picture in &data.pictures {
            let described = data.described(picture, size(picture))?;
            assert_eq!(described.size, size(picture));
            assert_eq!(described.expressions.len(), picture.expressions.len());
            for (said, expression) in described.expressions.iter().zip(&picture.expressions) {
                assert_eq!((&said.phrase, said.count), (&expression.phrase, count));
                let truth = data.truth(expression, picture, size(picture))?;
                several += usize::from(said.objects.len() > 1);
                let masks = said
                    .objects
                    .iter()
                    .map(|&index| &described.objects[index].mask);
                let mut union = refseg::Mask::empty(described.size.0, described.size.1)?;
                for mask in masks {
                    union = union.union(mask)?;
                }
                assert!(union == truth.mask, "{}", expression.id);
            }
            for object in &described.objects {
                let [x1, y1, x2, y2] = object.box_px;
                let [left, top, right, bottom] =
                    object.mask.bounds().ok_or("a mask")?.map(f64::from);
                // Polygons are rasterised to within a pixel of their own box.
                let again = described.objects.iter().filter(|other| *other == object);
                assert_eq!(again.count(), 1, "each object once");
                for gap in [x1 - left, y1 - top, x2 - right, y2 - bottom] {
                    assert!(
                        gap.abs() < 1.5,
                        "{:?} around {:?}",
                        object.box_px,
                        object.mask
                    );
                }
            }
        }
        assert_eq!(several > 0, source == Source::GRefCoco, "{source} {split}");
    }
    Ok(())
}

#[test]
fn every_expression_of_a_split_becomes_part_of_a_conversation() -> Done {
    let data = Dataset::open(&Source::GRefCoco, "train", &fixtures().join("mini-refcoco"))?;
    let recipe = Recipe::repaired();
    for picture in &data.pictures {
        let described = data.described(picture, size(picture))?;
        let mut random = recipe.stream(&picture.id, 0);
        let written = write(&described, &recipe, &mut random, &|turns| 50 * turns.len());
        assert!(written.left_out.is_empty());
        let turns: Vec<_> = written.conversations.concat();
        for expression in &picture.expressions {
            let quoted = format!("\"{}\".", expression.phrase);
            assert!(
                turns.iter().any(|turn| turn.question.ends_with(&quoted)),
                "{quoted}"
            );
        }
    }
    Ok(())
}

#[test]
fn without_a_stated_box_it_is_that_of_the_mask() -> Done {
    let folder = tempdir()?;
    let mut boxless = annotation(7, 2, 5);
    boxless.as_object_mut().ok_or("an object")?.remove("bbox");
    let refs = [reference(1, json!(7), 1, "val", &["it"])];
    put_set(folder.path(), "refcoco", &refs, &[boxless])?;
    let data = Dataset::open(&Source::RefCoco, "val", folder.path())?;
    let picture = &data.pictures[0];
    let described = data.described(picture, size(picture))?;
    let around = described.objects[0].mask.bounds().ok_or("a mask")?;
    assert_eq!(described.objects[0].box_px, around.map(f64::from));
    let wrong = data.described(picture, (3, 3));
    assert!(matches!(wrong, Err(DataError::Size { .. })));
    Ok(())
}
