//! RefCOCO and its relatives.

use std::collections::BTreeMap;

use refseg_data::dataset::{DataError, Dataset, Source, parse_refs};
use refseg_data::metrics::Family;
use refseg_data::scenes::{DatasetOptions, Part, SceneOptions, write_dataset};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::tempdir;

use super::*;

#[derive(serde::Deserialize)]
struct Expected {
    images: usize,
    expressions: usize,
    gt_areas: Vec<u64>,
}

/// Fixture: `mini-refcoco`, official code.
#[test]
fn masks_match_the_reference() -> Done {
    let root = fixtures().join("mini-refcoco");
    let json = fs::read_to_string(root.join("expected.json"))?;
    let expected: BTreeMap<String, Expected> = serde_json::from_str(&json)?;
    assert_eq!(expected.len(), 5);
    for (name, expected) in expected {
        let (source, split) = name.split_once('/').ok_or("no split")?;
        let data = Dataset::open(&source.parse()?, split, &root)?;
        assert_eq!(data.pictures.len(), expected.images, "{name}");
        assert_eq!(data.expressions(), expected.expressions, "{name}");
        let areas: Vec<u64> = areas(&data, (0, 0))?
            .into_iter()
            .map(|(_, area)| area)
            .collect();
        assert_eq!(areas, expected.gt_areas, "{name}");
        assert_eq!(data.skipped(), [""; 0]);
    }
    Ok(())
}

/// The root may be the folder that holds `refer_seg`, or that folder itself.
#[test]
fn a_split_is_read_as_it_is_written() -> Done {
    let root = fixtures().join("mini-refcoco");
    let data = Dataset::open(&Source::RefCoco, "val", &root)?;
    let direct = Dataset::open(&Source::RefCoco, "val", &root.join("refer_seg"))?;
    assert_eq!(data.pictures, direct.pictures);
    assert_eq!(
        (data.name.as_str(), data.split.as_str()),
        ("refcoco", "val")
    );
    assert_eq!((data.family, data.references()), (Family::Res, 6));
    let picture = &data.pictures[0];
    assert_eq!(picture.id, "5001");
    assert_eq!(picture.size, Some((333, 240)));
    let path = "refer_seg/images/mscoco/images/train2014/COCO_train2014_000000005001.jpg";
    assert_eq!(picture.path, root.join(path));
    let ids: Vec<_> = picture
        .expressions
        .iter()
        .map(|said| said.id.as_str())
        .collect();
    assert_eq!(ids, ["3:0", "4:0", "4:1", "4:2", "5:0", "5:1"]);

    let folder = root.join("refer_seg/refcoco");
    let mut sha = Sha256::new();
    sha.update(fs::read(folder.join("refs(unc).p"))?);
    sha.update(fs::read(folder.join("instances.json"))?);
    let digest: String = sha
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(data.digest(), digest);
    Ok(())
}

#[test]
fn phrases_are_normalised_in_evaluation_alone() -> Done {
    let root = tempdir()?;
    let phrases = [" The Left MUG. ", "Ünique ...", "..", "mug"];
    let refs = [
        reference(1, json!(10), 1, "val", &phrases),
        reference(2, json!(10), 1, "train", &phrases),
    ];
    put_set(root.path(), "refcoco", &refs, &[annotation(10, 0, 2)])?;
    let phrases = |split| -> Result<Vec<String>, DataError> {
        let data = Dataset::open(&Source::RefCoco, split, root.path())?;
        Ok(areas(&data, (6, 8))?
            .into_iter()
            .map(|(phrase, _)| phrase)
            .collect())
    };
    assert_eq!(phrases("val")?, ["the left mug", "ünique ", "", "mug"]);
    assert_eq!(phrases("train")?, ["The Left MUG", "Ünique ", "", "mug"]);
    Ok(())
}

#[test]
fn splits_are_chosen_as_the_reference_does() -> Done {
    let root = tempdir()?;
    let written = [
        "train", "val", "testA", "testB", "testAB", "testC", "test", "Best",
    ];
    let refs: Vec<Value> = (0..)
        .zip(written)
        .map(|(id, split)| reference(id, json!([10]), 1, split, &[split]))
        .collect();
    for set in ["refcoco", "refcocog", "refclef", "grefcoco"] {
        put_set(root.path(), set, &refs, &[annotation(10, 0, 2)])?;
    }
    let chosen = |source: Source, split| -> Result<String, DataError> {
        let data = Dataset::open(&source, split, root.path())?;
        let said = data
            .pictures
            .iter()
            .flat_map(|picture| &picture.expressions);
        let ids: Vec<_> = said.map(|said| said.id.trim_end_matches(":0")).collect();
        Ok(ids.join(" "))
    };
    assert_eq!(chosen(Source::RefCoco, "train")?, "0");
    assert_eq!(chosen(Source::RefCoco, "val")?, "1");
    assert_eq!(chosen(Source::RefCoco, "testA")?, "2 4");
    assert_eq!(chosen(Source::RefCoco, "testB")?, "3 4 7");
    assert_eq!(chosen(Source::RefCocoG, "test")?, "2 3 4 5 6");
    assert_eq!(chosen(Source::RefClef, "testC")?, "5");
    assert_eq!(chosen(Source::GRefCoco, "testA")?, "2");
    assert_eq!(
        failure(Source::RefCocoG, "testA", root.path()),
        "refcocog has no split `testA`; expected one of train, val, test"
    );
    Ok(())
}

#[test]
fn grefcoco_unites_targets_or_has_none() -> Done {
    let root = tempdir()?;
    let mut odd = annotation(12, 6, 7);
    odd["segmentation"] = json!([[6, 0, 7, 0, 7, 6, 6, 6, 1], [7, 0, 8, 0, 8, 6, 7, 6]]);
    let refs = |split| {
        [
            reference(1, json!([10, 11]), 1, split, &["two"]),
            reference(2, json!([-1]), 1, split, &["none"]),
            reference(3, json!([12]), 1, split, &["odd"]),
        ]
    };
    let annotations = [annotation(10, 0, 2), annotation(11, 1, 4), odd];
    let refs = [refs("val"), refs("train")].concat();
    // Numbers are unique within a split only.
    put_set(root.path(), "grefcoco", &refs, &annotations)?;
    for (split, odd_area) in [("val", 6), ("train", 12)] {
        let data = Dataset::open(&Source::GRefCoco, split, root.path())?;
        assert_eq!(data.family, Family::Gres);
        let expected = [("two", 24), ("none", 0), ("odd", odd_area)];
        assert_eq!(
            areas(&data, (6, 8))?,
            expected.map(|(phrase, area)| (phrase.to_owned(), area))
        );
    }
    Ok(())
}

#[test]
fn the_official_box_is_rounded_to_f16_first() -> Done {
    let root = tempdir()?;
    let mut boxed = annotation(10, 0, 2);
    boxed["bbox"] = json!([100.07, 0.1, 2049.0, 3.0]);
    let refs = [reference(1, json!(10), 1, "val", &["mug"])];
    put_set(root.path(), "refcoco", &refs, &[boxed])?;
    let data = Dataset::open(&Source::RefCoco, "val", root.path())?;
    let picture = &data.pictures[0];
    let truth = data.truth(&picture.expressions[0], picture, (6, 8))?;
    // Steps of f16 are 1/16 at 100, 2 at 2049, 1/16384 at 0.1.
    let expected = [
        100.0625,
        1638.0 / 16384.0,
        100.0625 + 2048.0,
        1638.0 / 16384.0 + 3.0,
    ];
    assert_eq!(truth.official_box, Some(expected));
    assert_eq!(truth.ignore, None);
    Ok(())
}

#[test]
fn references_of_every_protocol_are_the_same() -> Done {
    let mut all = Vec::new();
    for protocol in 0..=5 {
        let path = fixtures().join(format!("pickles/protocol-{protocol}.p"));
        let refs: Result<Vec<_>, _> = parse_refs(&fs::read(&path)?, &path)?.into_iter().collect();
        all.push(refs?);
    }
    let [reference] = &all[0][..] else {
        return Err("one reference".into());
    };
    assert_eq!((reference.ref_id, reference.image_id), (7, 300));
    assert_eq!(reference.annotation_ids, [3, -4, 1 << 40]);
    assert_eq!(reference.split, "val");
    assert_eq!(reference.sentences, ["café, 杯 😀", "it's \\ \"odd\"\n"]);
    assert!(all.iter().all(|refs| *refs == all[0]));
    Ok(())
}

/// A hundred sentences, each a hundred letters, shared by a thousand references.
#[test]
fn references_that_grow_without_end_are_refused() -> Done {
    let mut bytes =
        b"\x80\x02](}(U\x06ref_idK\x01U\x06ann_idK\x02U\x08image_idK\x03U\x05split".to_vec();
    bytes.extend(b"U\x03valU\x09sentences](}U\x04sentU\x64");
    bytes.extend([b'x'; 100]);
    bytes.extend(b"sq\0");
    bytes.extend(b"h\0".repeat(99));
    bytes.extend(b"euq\x01");
    bytes.extend(b"h\x01".repeat(999));
    bytes.extend(b"e.");
    let message = parse_refs(&bytes, "refs.p".as_ref())
        .map(drop)
        .map_err(|error| error.source().map(ToString::to_string).unwrap_or_default());
    assert!(
        matches!(&message, Err(text) if text.starts_with("its references repeat shared values")),
        "{message:?}"
    );
    Ok(())
}

#[test]
fn faults_of_whole_files_are_named() -> Done {
    let root = tempdir()?;
    let folder = root.path().join("refer_seg/refcoco");
    let failure = || failure(Source::RefCoco, "val", root.path());
    assert_eq!(
        failure(),
        "`ROOT`: no data set; expected `ROOT/refer_seg/refcoco/refs(unc).p`, or \
         `ROOT/refcoco/refs(unc).p`"
    );
    let refs = folder.join("refs(unc).p");
    put(&refs, b"cos\nsystem\n(S'true'\ntR.")?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/refs(unc).p`: cannot be read as a pickle of references: byte 0: \
         instruction GLOBAL makes Python run `os.system`; only plain values are read, and \
         nothing is executed"
    );
    put(&refs, b"(lp0\n(dp1\nS'ref")?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/refs(unc).p`: cannot be read as a pickle of references: byte 10: \
         the pickle ends early; a line does not end"
    );
    put(&refs, b"(dp0\n.")?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/refs(unc).p`: the pickle: a dictionary of 0; expected a list of \
         references"
    );
    put(&refs, b"(lp0\n.")?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/refs(unc).p`: nothing belongs to the split `val`; there is no \
         reference at all"
    );
    put(
        &refs,
        json!([reference(1, json!(10), 1, "train", &["mug"])]).to_string(),
    )?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/refs(unc).p`: nothing belongs to the split `val`; there is train"
    );
    put(&refs, "[{]")?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/refs(unc).p`: the file cannot be read as a list of references: \
         key must be a string at line 1 column 3"
    );
    put(
        &refs,
        json!([reference(1, json!(10), 1, "val", &["mug"])]).to_string(),
    )?;
    assert!(failure().starts_with("`ROOT/refer_seg/refcoco/instances.json`: cannot be read: "));
    put(
        folder.join("instances.json"),
        r#"{"images": [], "annotations": [{"id": 1}"#,
    )?;
    assert_eq!(
        failure(),
        "`ROOT/refer_seg/refcoco/instances.json`: the file cannot be read as COCO's `images` and \
         `annotations`: EOF while parsing a list at line 1 column 40"
    );
    Ok(())
}

/// Each fault, as one more reference or annotation; and what is left without it.
#[test]
fn faults_of_entries_are_named_or_skipped() -> Done {
    let root = tempdir()?;
    let good = reference(1, json!(10), 1, "val", &["mug"]);
    let with = |key: &str, value: Value| {
        let mut entry = reference(2, json!(11), 1, "val", &["cup"]);
        entry[key] = value;
        entry
    };
    let segmented = |segmentation: Value| {
        let mut entry = annotation(11, 0, 1);
        entry["segmentation"] = segmentation;
        entry
    };
    let fine = || annotation(11, 0, 1);
    let refs = "`ROOT/refer_seg/refcoco/refs(unc).json`: ";
    let instances = "`ROOT/refer_seg/refcoco/instances.json`: ";
    let cases = [
        (
            with("ann_id", json!(99)),
            fine(),
            refs,
            "ref_id 2: ann_id 99; expected a readable annotation of instances.json",
        ),
        (
            with("ann_id", json!([-1])),
            fine(),
            refs,
            "ref_id 2: ann_id -1; expected a readable annotation of instances.json",
        ),
        (
            with("ann_id", json!([])),
            fine(),
            refs,
            "ref_id 2: no `ann_id`; expected one or more",
        ),
        (
            with("image_id", json!(77)),
            fine(),
            refs,
            "ref_id 2: image_id 77; expected a picture of instances.json",
        ),
        (
            with("sentences", json!([])),
            fine(),
            refs,
            "ref_id 2: no sentences; expected one or more",
        ),
        (
            with("ref_id", json!(1)),
            fine(),
            refs,
            "ref_id 1: the second of this number; expected each `ref_id` once",
        ),
        (
            with("ann_id", json!("x")),
            fine(),
            refs,
            "entry 1 cannot be read as a reference: `ann_id` is neither a number nor a list of \
             numbers",
        ),
        (
            with("sentences", json!([{"raw": "x"}])),
            fine(),
            refs,
            "entry 1 cannot be read as a reference: missing field `sent`",
        ),
        (
            with("ref_id", json!(2)),
            segmented(json!("x")),
            instances,
            "`segmentation` of annotations[1] (id 11) cannot be read as polygons or run lengths: \
             invalid type: string \"x\", expected a sequence",
        ),
        (
            with("ref_id", json!(2)),
            segmented(Value::Null),
            instances,
            "annotations[1] (id 11): no `segmentation`; expected polygons or run lengths",
        ),
    ];
    for (reference, annotation11, file, problem) in cases {
        let annotations = [annotation(10, 0, 2), annotation11];
        put_set(
            root.path(),
            "refcoco",
            &[good.clone(), reference],
            &annotations,
        )?;
        let message = failure(Source::RefCoco, "val", root.path());
        let expected = format!("{file}{problem}");
        assert!(message.starts_with(&expected), "{message}\n{expected}");

        let data = lenient(Source::RefCoco, "val", root.path())?;
        assert_eq!(areas(&data, (6, 8))?, [("mug".to_owned(), 12)]);
        let first = data.skipped()[0].replace(&root.path().display().to_string(), "ROOT");
        assert_eq!(first, message);
    }
    Ok(())
}

/// Faults that show when a mask is made: the data set opens, and other masks are made.
#[test]
fn faults_of_masks_are_named() -> Done {
    let root = tempdir()?;
    let refs = [reference(1, json!(10), 1, "val", &["mug"])];
    let path = "`ROOT/refer_seg/refcoco/instances.json`: annotations[0] (id 10): ";
    for (segmentation, problem) in [
        (
            json!({"size": [6, 9], "counts": [54]}),
            "run lengths of a mask of (6, 9) in a picture of (6, 8); expected one size (height, \
             width)",
        ),
        (
            json!({"size": [6, 8], "counts": [47]}),
            "no mask can be made of it: a mask of 6x8 (height x width) needs 48 values; found 47",
        ),
        (
            json!([{"size": [6, 8], "counts": "é"}]),
            "no mask can be made of it: the run-length code of a mask of 6x8 (height x width) is \
             malformed",
        ),
    ] {
        let mut broken = annotation(10, 0, 2);
        broken["segmentation"] = segmentation;
        put_set(root.path(), "refcoco", &refs, &[broken])?;
        let message = failure(Source::RefCoco, "val", root.path());
        assert!(
            message.starts_with(&format!("{path}{problem}")),
            "{message}"
        );
    }
    Ok(())
}

#[test]
fn pickled_faults_name_the_entry_and_the_field() -> Done {
    let refs = |entry: &str| -> Result<String, DataError> {
        let pickle = format!("(l(dS'ref_id'\nI1\nsS'split'\nS'val'\nsS'image_id'\nI1\ns{entry}a.");
        let mut refs = parse_refs(pickle.as_bytes(), "r.p".as_ref())?;
        Ok(refs
            .remove(0)
            .map_or_else(|error| error.to_string(), |r| format!("{r:?}")))
    };
    let sentences = "S'sentences'\n(l(dS'sent'\nS'mug'\nsas";
    let whole = refs(&format!("{sentences}S'ann_id'\nI5\ns"))?;
    assert!(whole.contains("annotation_ids: [5]"), "{whole}");
    for (entry, problem) in [
        (
            sentences.to_owned(),
            "entry 0: no `ann_id`; expected it in every entry",
        ),
        (
            format!("{sentences}S'ann_id'\nS'x'\ns"),
            "entry 0: `ann_id` has the text \"x\"; expected a number or a list of numbers",
        ),
        (
            format!("{sentences}S'ann_id'\n(lNas"),
            "entry 0: `ann_id` has None; expected numbers",
        ),
        (
            "S'sentences'\nS'mug'\ns".to_owned(),
            "entry 0: `sentences` has the text \"mug\"; expected a list",
        ),
        (
            "S'sentences'\n(lS'mug'\nas".to_owned(),
            "entry 0: `sentences` has the text \"mug\"; expected dictionaries",
        ),
        (
            "S'sentences'\n(l(dS'raw'\nS'mug'\nsas".to_owned(),
            "entry 0: no `sent`; expected it in every entry",
        ),
    ] {
        assert_eq!(refs(&entry)?, format!("`r.p`: {problem}"));
    }
    Ok(())
}

#[test]
fn pictures_stay_in_their_folder() -> Done {
    let root = tempdir()?;
    for name in ["../../x.jpg", "/etc/x.jpg", ""] {
        let refs = [reference(1, json!(10), 1, "val", &["mug"])];
        put_set(root.path(), "refcoco", &refs, &[annotation(10, 0, 2)])?;
        let path = root.path().join("refer_seg/refcoco/instances.json");
        let instances = fs::read_to_string(&path)?.replace("1.jpg", name);
        fs::write(&path, instances)?;
        let message = failure(Source::RefCoco, "val", root.path());
        let expected = "expected a path that stays inside its folder";
        assert!(message.ends_with(expected), "{message}");
    }
    Ok(())
}

#[test]
fn a_mask_is_made_for_its_own_picture_alone() -> Done {
    let root = fixtures().join("mini-refcoco");
    let data = Dataset::open(&Source::RefCoco, "val", &root)?;
    let picture = &data.pictures[0];
    let turned = data.truth(&picture.expressions[0], picture, (240, 333));
    assert!(matches!(
        turned,
        Err(DataError::Size {
            found: (240, 333),
            expected: (333, 240),
            ..
        })
    ));

    let small = tempdir()?;
    let refs = [reference(1, json!(10), 1, "val", &["mug"])];
    put_set(small.path(), "refcoco", &refs, &[annotation(10, 0, 2)])?;
    let small = Dataset::open(&Source::RefCoco, "val", small.path())?;
    let foreign = small.truth(&picture.expressions[1], &small.pictures[0], (6, 8));
    assert!(
        matches!(foreign, Err(DataError::Foreign { .. })),
        "{foreign:?}"
    );
    Ok(())
}

/// What `refseg scenes` writes.
#[test]
fn drawn_scenes_are_read() -> Done {
    let root = tempdir()?;
    let summary = write_dataset(
        root.path(),
        &DatasetOptions {
            scenes: SceneOptions::default(),
            parts: Part::refcoco(0, 3, 2, 2),
            overwrite: false,
            threads: None,
        },
        |_| {},
    )?;
    for (source, total) in [
        (Source::RefCoco, summary.single_target_phrases),
        (Source::GRefCoco, summary.phrases),
    ] {
        let mut expressions = 0;
        for split in ["train", "val", "testA", "testB"] {
            let data = Dataset::open(&source, split, root.path())?;
            expressions += data.expressions();
            for picture in &data.pictures {
                let image = Image::open(&picture.path)?;
                let size = (image.height() as usize, image.width() as usize);
                for expression in &picture.expressions {
                    let truth = data.truth(expression, picture, size)?;
                    let bounds = truth.mask.bounds();
                    if source == Source::RefCoco {
                        // Boxes of drawn objects are whole pixels below 2048.
                        assert_eq!(bounds, truth.official_box, "{expression:?}");
                    }
                }
            }
        }
        assert_eq!(expressions, total);
    }
    Ok(())
}
