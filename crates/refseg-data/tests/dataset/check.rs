//! The check of a whole folder.

use refseg_data::dataset::{CheckOptions, Counts, SplitReport, check};
use serde_json::json;
use tempfile::tempdir;

use super::*;

fn split<'a>(sets: &'a Value, set: &str, split: &str) -> Option<&'a Value> {
    let named = |list: &'a Value, key: &str, name: &str| {
        let mut entries = list.as_array()?.iter();
        entries.find(|entry| entry[key] == name)
    };
    named(&named(sets, "name", set)?["splits"], "split", split)
}

/// Every kind of finding, once.
#[test]
fn everything_wrong_is_found() -> Done {
    let root = tempdir()?;
    let mut outside = annotation(12, 0, 1);
    outside["segmentation"] = json!([
        [-5, 0, 0, 0, 0, 6],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4],
        [1, 8, 3, 8, 3, 9],
    ]);
    let annotations = [annotation(10, 0, 2), annotation(11, 2, 4), outside];
    let refs = [
        reference(1, json!(10), 1, "train", &["mug"]),
        reference(2, json!(11), 1, "train", &["MUG.", "cup"]),
        reference(3, json!(99), 1, "train", &["lost"]),
        reference(4, json!(12), 2, "val", &["outside", "again"]),
        reference(5, json!(10), 3, "val", &["damaged"]),
    ];
    put_set(root.path(), "refcoco", &refs, &annotations)?;
    let refs = [
        reference(1, json!(10), 1, "val", &["mug"]),
        reference(2, json!(10), 2, "test", &["mug"]),
    ];
    put_set(root.path(), "refcocog", &refs, &annotations)?;
    let pictures = root.path().join("refer_seg/images/mscoco/images/train2014");
    put_picture(&pictures.join("1.jpg"), (7, 8), [0; 4])?;
    put(pictures.join("3.jpg"), "no picture")?;

    let mut heard = Vec::new();
    let report = check(root.path(), &CheckOptions::default(), |name| {
        heard.push(name.to_owned())
    });
    assert_eq!(heard[..2], ["refcoco/train", "refcoco/val"]);
    let report = serde_json::to_value(&report)?;
    let sets = &report["sets"];
    assert_eq!(sets.as_array().map(Vec::len), Some(2));

    let train = split(sets, "refcoco", "train").ok_or("no split")?;
    assert_eq!(
        train["counts"],
        json!({"pictures": 1, "references": 2, "expressions": 3})
    );
    assert_eq!(
        train["published"],
        json!({"pictures": 16994, "references": 42404, "expressions": 120624})
    );
    assert_eq!(train["skipped"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        train["wrong_sizes"][0]["problem"],
        "is (7, 8) (height, width); the annotations state (6, 8)"
    );
    assert_eq!(
        train["duplicate_phrases"],
        json!([{"picture": "1", "phrase": "mug", "expressions": ["1:0", "2:0"]}])
    );
    for list in [
        "missing_pictures",
        "unreadable_pictures",
        "empty_masks",
        "invalid_polygons",
    ] {
        assert_eq!(train[list], json!([]), "{list}");
    }

    let val = split(sets, "refcoco", "val").ok_or("no split")?;
    assert_eq!(val["missing_pictures"], json!([pictures.join("2.jpg")]));
    assert_eq!(val["unreadable_pictures"].as_array().map(Vec::len), Some(1));
    let entry = "annotations[2] (id 12)";
    assert_eq!(
        val["invalid_polygons"],
        json!([
            {"entry": entry, "problem": "polygon 0 lies wholly outside the picture"},
            {"entry": entry, "problem": "polygon 1 has an odd number of coordinates"},
            {"entry": entry, "problem": "polygon 2 has fewer than three points"},
            {"entry": entry, "problem": "polygon 3 lies wholly outside the picture"},
        ])
    );
    assert_eq!(
        val["empty_masks"],
        json!([{"entry": "4:0", "problem": "its annotations mark not one pixel"}])
    );
    assert_eq!(val["duplicate_phrases"], json!([]));
    assert_eq!(
        report["leaks"],
        json!([{"training": "refcoco/train", "evaluation": "refcocog/val", "pictures": 1, "of": 1}])
    );
    Ok(())
}

/// A header can be sound where the picture is not.
#[test]
fn pictures_are_decoded_on_request() -> Done {
    let root = tempdir()?;
    let refs = [reference(1, json!(10), 1, "val", &["mug"])];
    put_set(root.path(), "refcoco", &refs, &[annotation(10, 0, 2)])?;
    let path = root
        .path()
        .join("refer_seg/images/mscoco/images/train2014/1.jpg");
    put_picture(&path, (6, 8), [0; 4])?;
    let bytes = fs::read(&path)?;
    fs::write(&path, &bytes[..bytes.len() - 20])?;
    for (decode_pictures, unreadable) in [(false, 0), (true, 1)] {
        let report = check(root.path(), &CheckOptions { decode_pictures }, |_| {});
        let split = &report.sets[0].splits[0];
        assert_eq!(split.unreadable_pictures.len(), unreadable);
        // Three counts differ from the published ones.
        assert_eq!(split.faults(), 3 + unreadable);
    }
    Ok(())
}

#[test]
fn an_empty_folder_has_nothing_to_report() -> Done {
    let root = tempdir()?;
    let report = check(root.path(), &CheckOptions::default(), |_| {});
    assert_eq!((report.sets.len(), report.leaks.len()), (0, 0));

    put(root.path().join("refcoco/refs(unc).p"), "x")?;
    let report = check(root.path(), &CheckOptions::default(), |_| {});
    let errors = report.sets[0]
        .splits
        .iter()
        .map(|split| split.error.is_some());
    assert_eq!(errors.collect::<Vec<_>>(), [true; 4]);
    Ok(())
}

#[test]
fn only_what_differs_from_the_literature_is_a_fault() {
    let counts = Counts {
        pictures: 1500,
        references: Some(7),
        expressions: Some(16870),
    };
    let mut report = SplitReport {
        counts,
        published: Some(Counts {
            references: None,
            ..counts
        }),
        ..SplitReport::default()
    };
    assert_eq!(report.faults(), 0);
    report.counts.pictures = 1499;
    assert_eq!(report.faults(), 1);
    report.skipped.push(String::new());
    assert_eq!(report.faults(), 2);
}
