//! ReasonSeg.

use refseg_data::dataset::{Dataset, Source};
use refseg_data::metrics::Family;
use serde_json::json;
use tempfile::tempdir;

use super::*;

/// A square of the columns and rows from `from` to `to`, both included.
fn square(label: &str, from: f64, to: f64) -> Value {
    json!({"label": label, "points": [[from, from], [to, from], [to, to], [from, to]]})
}

#[test]
fn small_polygons_lie_on_large_ones() -> Done {
    let root = tempdir()?;
    let sample = json!({
        "text": ["what holds tea", "the cup"], "is_sentence": true,
        "shapes": [
            square("ignore", 1.9, 2.9),
            square("target", 0.0, 5.2),
            square("Flag", 0.0, 5.0),
            square("target", 2.0, 2.0),
            square("to_IGNORE_too", 7.0, 7.0),
        ],
    });
    put(root.path().join("val/cup.json"), sample.to_string())?;
    put(root.path().join("val/notes.txt"), "no sample")?;
    let data = Dataset::open(&Source::ReasonSeg, "val", root.path())?;
    assert_eq!(data.family, Family::Reason);
    let [picture] = &data.pictures[..] else {
        return Err("one picture".into());
    };
    assert_eq!(picture.path, root.path().join("val/cup.jpg"));
    assert_eq!((picture.id.as_str(), picture.size), ("cup", None));
    let [expression] = &picture.expressions[..] else {
        return Err("one expression".into());
    };
    assert_eq!(
        (expression.id.as_str(), expression.phrase.as_str()),
        ("cup:0", "what holds tea")
    );

    let truth = data.truth(expression, picture, (8, 8))?;
    // Six by six; less two by two, in which one pixel is target again.
    assert_eq!(truth.mask.area(), 36 - 4 + 1);
    let ignore = truth.ignore.ok_or("no ignored pixels")?;
    assert_eq!(ignore.area(), 3 + 1);
    let at = |x: usize, y: usize| (truth.mask.bits()[y * 8 + x], ignore.bits()[y * 8 + x]);
    assert_eq!(
        [at(0, 0), at(5, 5), at(6, 6)],
        [(true, false), (true, false), (false, false)]
    );
    assert_eq!(
        [at(1, 1), at(1, 2), at(2, 2)],
        [(false, true), (false, true), (true, false)]
    );
    assert_eq!(at(7, 7), (false, true));
    Ok(())
}

#[test]
fn training_has_all_texts_and_folders_may_be_nested() -> Done {
    let root = tempdir()?;
    let text = b"{\"text\": [\" the caf\xe9 \", \"two\"], \"shapes\": []}";
    put(root.path().join("reason_seg/ReasonSeg/train/b.json"), text)?;
    put(root.path().join("reason_seg/ReasonSeg/train/a.json"), text)?;
    put(root.path().join("ReasonSeg/test/a.json"), text)?;
    let said = |split| -> Result<Vec<String>, DataError> {
        let data = Dataset::open(&Source::ReasonSeg, split, root.path())?;
        let said = data
            .pictures
            .iter()
            .flat_map(|picture| &picture.expressions);
        Ok(said
            .map(|said| format!("{} {}", said.id, said.phrase))
            .collect())
    };
    let all = ["a:0 the café", "a:1 two", "b:0 the café", "b:1 two"];
    assert_eq!(said("train")?, all);
    assert_eq!(said("test")?, ["a:0 the café"]);
    Ok(())
}

#[test]
fn faults_are_named() -> Done {
    let root = tempdir()?;
    let failure = || failure(Source::ReasonSeg, "val", root.path());
    assert_eq!(
        failure(),
        "`ROOT`: no data set; expected `ROOT/reason_seg/ReasonSeg/val`, or `ROOT/ReasonSeg/val`, \
         or `ROOT/val`"
    );
    let path = root.path().join("val/x.json");
    put(path.with_extension("jpg"), "")?;
    assert_eq!(
        failure(),
        "`ROOT/val`: nothing belongs to the split `val`; there is no file *.json"
    );
    for (json, problem) in [
        (
            "{\"text\": [\"a\"]}",
            "the file cannot be read as `text` and `shapes`: missing field `shapes` at line 1 \
             column 15",
        ),
        (
            "{\"text\": [\" \"], \"shapes\": []}",
            "`text`: no words; expected one phrase or more",
        ),
        (
            "{\"text\": [\"a\"], \"shapes\": [{\"label\": \"target\", \"points\": [[1e9, 0]]}]}",
            "shapes[0]: a point far outside any picture; expected pixels",
        ),
    ] {
        put(&path, json)?;
        assert_eq!(failure(), format!("`ROOT/val/x.json`: {problem}"));
        put(
            root.path().join("val/y.json"),
            "{\"text\": [\"a\"], \"shapes\": []}",
        )?;
        let data = lenient(Source::ReasonSeg, "val", root.path())?;
        assert_eq!((data.expressions(), data.skipped().len()), (1, 1));
        fs::remove_file(root.path().join("val/y.json"))?;
    }
    Ok(())
}
