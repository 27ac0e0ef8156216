//! Data of one's own: COCO JSON with phrases, folders, JSON lines.

use refseg::mask::Mask;
use refseg_data::dataset::{Dataset, Source};
use refseg_data::metrics::Family;
use serde_json::json;
use tempfile::tempdir;

use super::*;

fn pairs<const N: usize>(expected: [(&str, u64); N]) -> Vec<(String, u64)> {
    expected
        .map(|(phrase, area)| (phrase.to_owned(), area))
        .to_vec()
}

#[test]
fn coco_phrases_stand_on_annotations() -> Done {
    let root = tempdir()?;
    let with = |mut annotation: Value, key: &str, value: Value| {
        annotation[key] = value;
        annotation
    };
    let mut file = json!({
        "images": [image(1), {"id": 2, "file_name": "two.jpg"}],
        "annotations": [
            with(annotation(10, 0, 1), "caption", json!(" The Mug ")),
            with(annotation(11, 0, 2), "phrase", json!(["a", "", "b"])),
            annotation(12, 0, 3),
            with(with(annotation(13, 0, 4), "sentence", json!("c")), "text", json!("d")),
            with(with(annotation(14, 0, 0), "text", json!("none")), "segmentation", json!([])),
        ],
        "categories": [{"id": 1, "name": "mug"}],
    });
    file["annotations"][1]["image_id"] = json!(2);
    let path = root.path().join("kitchen.json");
    put(&path, file.to_string())?;
    put(root.path().join("images/two.jpg"), "")?;
    let data = Dataset::open(&Source::Coco, "all", &path)?;
    assert_eq!((data.name.as_str(), data.family), ("kitchen", Family::Gres));
    let expected = pairs([
        ("The Mug", 6),
        ("c", 24),
        ("d", 24),
        ("none", 0),
        ("a", 12),
        ("b", 12),
    ]);
    assert_eq!(areas(&data, (6, 8))?, expected);
    assert_eq!(data.pictures[0].expressions[2].id, "13:1");
    assert_eq!(data.pictures[0].path, root.path().join("1.jpg"));
    assert_eq!(data.pictures[1].path, root.path().join("images/two.jpg"));

    fs::rename(&path, root.path().join("annotations.json"))?;
    let in_folder = Dataset::open(&Source::Coco, "all", root.path())?;
    assert_eq!(in_folder.digest(), data.digest());
    Ok(())
}

#[test]
fn faults_of_coco_files_are_named() -> Done {
    let root = tempdir()?;
    let failure = || failure(Source::Coco, "all", root.path());
    assert!(failure().starts_with("`ROOT`: no data set; expected `ROOT/annotations.json`, or "));
    assert_eq!(
        super::failure(Source::Coco, "val", root.path()),
        "coco has no split `val`; expected one of all"
    );
    let path = root.path().join("annotations.json");
    let annotated = |key: &str, value: Value| {
        let mut entry = annotation(10, 0, 1);
        entry[key] = value;
        json!({"images": [image(1)], "annotations": [entry]}).to_string()
    };
    put(&path, annotated("name", json!("mug")))?;
    assert_eq!(
        failure(),
        "`ROOT/annotations.json`: nothing belongs to the split `all`; there is no annotation with \
         `caption`, `phrase`, `sentence` or `text`"
    );
    put(&path, annotated("text", json!(7)))?;
    assert!(
        failure().contains("a phrase is neither a text nor a list of texts"),
        "{}",
        failure()
    );
    put(
        &path,
        annotated("text", json!("mug")).replace("\"image_id\":1", "\"image_id\":5"),
    )?;
    assert_eq!(
        failure(),
        "`ROOT/annotations.json`: annotations[0] (id 10): image_id 5; expected one of `images`"
    );
    let data = lenient(Source::Coco, "all", root.path())?;
    assert_eq!((data.expressions(), data.skipped().len()), (0, 1));
    Ok(())
}

#[test]
fn folders_hold_pictures_phrases_and_masks() -> Done {
    let root = tempdir()?;
    let folder = root.path().join("my.set");
    put_picture(&folder.join("mug.png"), (6, 8), [0; 4])?;
    put(folder.join("mug.txt"), "\u{feff}the mug\r\n\n the cup \n")?;
    put_picture(&folder.join("mug.mask.png"), (6, 8), [0, 0, 2, 6])?;
    put(folder.join("README.txt"), "no picture of this name")?;
    for sample in ["b", "a"] {
        put_picture(&folder.join(sample).join("image.png"), (6, 8), [0; 4])?;
        put(folder.join(sample).join("image.txt"), sample)?;
        put_picture(&folder.join(sample).join("mask.png"), (6, 8), [0, 0, 1, 1])?;
    }
    let data = Dataset::open(&Source::Folder, "all", &folder)?;
    assert_eq!((data.name.as_str(), data.family), ("my", Family::Gres));
    let expected = pairs([("the mug", 12), ("the cup", 12), ("a", 1), ("b", 1)]);
    assert_eq!(areas(&data, (6, 8))?, expected);
    let said = data
        .pictures
        .iter()
        .flat_map(|picture| &picture.expressions);
    let ids: Vec<_> = said.map(|said| said.id.as_str()).collect();
    assert_eq!(ids, ["mug:0", "mug:2", "a/image:0", "b/image:0"]);

    // One sample is a data set, too.
    let one = Dataset::open(&Source::Folder, "all", &folder.join("a"))?;
    assert_eq!(areas(&one, (6, 8))?, pairs([("a", 1)]));

    // The digest covers the masks.
    put_picture(&folder.join("a/mask.png"), (6, 8), [0, 0, 2, 1])?;
    let changed = Dataset::open(&Source::Folder, "all", &folder.join("a"))?;
    assert_ne!(one.digest(), changed.digest());
    Ok(())
}

#[test]
fn faults_of_folders_are_named() -> Done {
    let root = tempdir()?;
    let failure = || failure(Source::Folder, "all", root.path());
    assert_eq!(
        failure(),
        "`ROOT`: nothing belongs to the split `all`; there is no text file with a picture of the \
         same name"
    );
    put_picture(&root.path().join("a.png"), (6, 8), [0; 4])?;
    put(root.path().join("a.txt"), "mug")?;
    assert_eq!(
        failure(),
        "`ROOT/a.txt`: the phrases: no mask beside them; expected NAME.mask.png, or mask.png for \
         image.txt"
    );
    put(root.path().join("a.mask.png"), "no picture")?;
    assert!(failure().starts_with("`ROOT/a.mask.png`: is no known picture format"));
    put_picture(&root.path().join("a.mask.png"), (8, 6), [0; 4])?;
    assert_eq!(
        failure(),
        "`ROOT/a.mask.png`: is (8, 6) (height, width); expected (6, 8)"
    );
    put(root.path().join("a.txt"), " \n")?;
    assert_eq!(
        failure(),
        "`ROOT/a.txt`: the phrases: no words; expected one phrase a line"
    );
    put(root.path().join("a.txt"), b"caf\xe9")?;
    assert_eq!(
        failure(),
        "`ROOT/a.txt`: the phrases: byte 3 is no UTF-8; expected UTF-8 text"
    );
    assert_eq!(
        lenient(Source::Folder, "all", root.path())?.skipped().len(),
        1
    );
    Ok(())
}

#[test]
fn json_lines_hold_an_expression_each() -> Done {
    let root = tempdir()?;
    let path = root.path().join("set.jsonl");
    let rle = Mask::from_run_lengths(6, 8, &[6, 12, 30])?.to_rle();
    let lines = [
        json!({"image": "in/a.jpg", "phrase": " the mug ", "rle": {"size": rle.size, "counts": rle.counts}}),
        json!({"image": "b.jpg", "phrase": "none", "rle": null, "id": "x"}),
        json!({"image": "in/a.jpg", "phrase": "all", "rle": {"size": [6, 8], "counts": [0, 48]}, "id": 7}),
    ];
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    put(&path, text.join("\n\n") + "\r\n")?;
    let data = Dataset::open(&Source::Jsonl, "all", &path)?;
    assert_eq!(data.name, "set");
    assert_eq!(
        areas(&data, (6, 8))?,
        pairs([("the mug", 12), ("all", 48), ("none", 0)])
    );
    assert_eq!(data.pictures[0].path, root.path().join("in/a.jpg"));
    let ids: Vec<_> = data.pictures[0]
        .expressions
        .iter()
        .map(|said| said.id.as_str())
        .collect();
    assert_eq!(ids, ["1", "7"]);
    Ok(())
}

#[test]
fn faults_of_json_lines_are_named() -> Done {
    let root = tempdir()?;
    let path = root.path().join("set.jsonl");
    let good = r#"{"image": "a", "phrase": "mug", "rle": null, "id": "x"}"#;
    for (line, problem) in [
        (
            "{",
            "line 2 cannot be read as `image`, `phrase` and `rle`: EOF while parsing",
        ),
        (
            r#"{"image": "a", "phrase": "mug"}"#,
            "line 2 cannot be read as `image`, `phrase` and `rle`: missing field `rle`",
        ),
        (
            r#"{"image": "a", "phrase": " ", "rle": null}"#,
            "line 2: an empty `phrase`; expected words",
        ),
        (
            good,
            "line 2: a second expression `x`; expected each identifier once in a split",
        ),
    ] {
        put(&path, format!("{good}\n{line}"))?;
        let message = failure(Source::Jsonl, "all", &path);
        assert!(
            message.starts_with(&format!("`ROOT`: {problem}")),
            "{message}"
        );
        let data = lenient(Source::Jsonl, "all", &path)?;
        assert_eq!((data.expressions(), data.skipped().len()), (1, 1));
    }
    put(&path, "\n")?;
    assert!(failure(Source::Jsonl, "all", &path).ends_with("there is no line"));
    Ok(())
}
