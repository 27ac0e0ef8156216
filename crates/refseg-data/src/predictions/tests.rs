use std::{
    collections::{HashMap, HashSet},
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use image::{GrayAlphaImage, GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage};
use refseg::mask::{Mask, Rle};

use super::*;

type TestResult = Result<(), Box<dyn Error>>;

const LINE: &str = "{\"picture\":\"7\",\"expression\":\"12\",\"phrase\":\"the mug\",\"found\":true,\
    \"presence\":0.98,\"score\":0.91,\"rle\":{\"size\":[3,4],\"counts\":\"0<\"},\
    \"rec_box\":[0,0,3,2],\"I\":8,\"U\":12,\"predicted\":12,\"truth\":8,\"ms\":12.3}\n";

fn prediction(picture: &str, expression: &str) -> Prediction {
    Prediction {
        picture: picture.to_owned(),
        expression: expression.to_owned(),
        ..serde_json::from_str(LINE).expect("the line is well formed")
    }
}

fn written(folder: &Path, name: &str, text: &str) -> Result<PathBuf, std::io::Error> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// The error and its causes, with the folder of the test left out.
fn message(folder: &Path, error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn a_line_is_read_and_written() -> TestResult {
    let prediction: Prediction = serde_json::from_str(LINE)?;
    assert_eq!(serde_json::to_string(&prediction)? + "\n", LINE);
    let outcome = prediction.outcome(Some([0.0, 0.0, 3.0, 2.0]));
    assert_eq!((outcome.intersection, outcome.union), (8, 12));
    assert_eq!((outcome.predicted, outcome.truth), (12, 8));
    assert_eq!((outcome.found, outcome.box_hit), (true, Some(true)));
    assert_eq!(prediction.outcome(None).box_hit, None);

    let without = Prediction {
        rec_box: None,
        ..prediction
    };
    assert!(!serde_json::to_string(&without)?.contains("rec_box"));
    assert_eq!(without.outcome(Some([0.0; 4])).box_hit, None);
    Ok(())
}

#[test]
fn answers_name_their_expression_in_several_ways() -> TestResult {
    let folder = tempfile::tempdir()?;
    let text = [
        LINE,
        "{\"id\":13,\"rle\":{\"size\":[2,3],\"counts\":[2,2,2]},\"found\":false}\n",
        "\n",
        "{\"image\":7,\"phrase\":\"a cup\",\"rle\":null,\"score\":0.5}\n",
        "{\"picture\":\"7\",\"phrase\":\"a pan\",\"rle\":null}",
    ];
    let path = written(folder.path(), "lines.jsonl", &text.concat())?;
    let answers = Answers::read_lines(&path, Reading::default())?;
    let by_phrase = |phrase: &str| AnswerKey::Phrase {
        picture: "7".to_owned(),
        phrase: phrase.to_owned(),
    };
    let expected = [
        (
            AnswerKey::Expression("12".to_owned()),
            Answer {
                found: Some(true),
                rle: Some(Rle {
                    size: [3, 4],
                    counts: "0<".to_owned(),
                }),
                rec_box: Some([0, 0, 3, 2]),
                presence: Some(0.98),
            },
            1,
        ),
        (
            AnswerKey::Expression("13".to_owned()),
            Answer {
                found: Some(false),
                rle: Some(Rle::from_runs([2, 3], &[2, 2, 2])?),
                rec_box: None,
                presence: None,
            },
            2,
        ),
        (
            by_phrase("a cup"),
            Answer {
                found: None,
                rle: None,
                rec_box: None,
                presence: None,
            },
            4,
        ),
        (
            by_phrase("a pan"),
            Answer {
                found: None,
                rle: None,
                rec_box: None,
                presence: None,
            },
            5,
        ),
    ];
    assert_eq!(answers.by_key.len(), expected.len());
    for (key, answer, line) in expected {
        let (place, found) = &answers.by_key[&key];
        assert_eq!(
            (found, place.line),
            (&answer, NonZeroU64::new(line)),
            "{key}"
        );
    }
    Ok(())
}

#[test]
fn faults_of_lines_are_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let good = "{\"id\":1,\"rle\":null}";
    let cases = [
        (
            "{\"id\":2}",
            "`lines.jsonl`, line 2: not a prediction in JSON: missing field `rle` at line 1 column 8",
        ),
        (
            "{\"id\":2,",
            "`lines.jsonl`, line 2: not a prediction in JSON: EOF while parsing a value at line 1 column 8",
        ),
        (
            "{\"id\":2.5,\"rle\":null}",
            "`lines.jsonl`, line 2: not a prediction in JSON: an id must be a string or a whole number at line 1 column 9",
        ),
        (
            "{\"id\":2,\"rle\":{\"size\":[1,1],\"counts\":{}}}",
            "`lines.jsonl`, line 2: not a prediction in JSON: `counts` must be a string or a list of run lengths at line 1 column 40",
        ),
        (
            "{\"image\":2,\"rle\":null}",
            "`lines.jsonl`, line 2: there is no `expression`, no `id`, and no `image` with `phrase`",
        ),
        (
            "{\"id\":2,\"rle\":{\"size\":[2,3],\"counts\":[2,2]}}",
            "`lines.jsonl`, line 2: the mask of expression `2` is damaged: a mask of 2x3 (height x width) needs 6 values; found 4",
        ),
        (
            "{\"expression\":\"1\",\"rle\":null}",
            "`lines.jsonl`, line 2: a second prediction for expression `1`; the first is in `lines.jsonl`, line 1",
        ),
    ];
    for (bad, expected) in cases {
        let text = format!("{good}\n{bad}\n{{\"id\":3,\"rle\":null}}\n");
        let path = written(folder.path(), "lines.jsonl", &text)?;
        let error = Answers::read_lines(&path, Reading::default()).expect_err(bad);
        assert_eq!(message(folder.path(), &error), expected);

        let keep_going = Reading {
            keep_going: true,
            ..Reading::default()
        };
        let answers = Answers::read_lines(&path, keep_going)?;
        assert_eq!(answers.by_key.len(), 2, "{bad}");
        assert_eq!(answers.skipped.len(), 1, "{bad}");
        assert_eq!(message(folder.path(), &answers.skipped[0]), expected);
    }
    let missing = Answers::read_lines(&folder.path().join("none"), Reading::default());
    assert!(matches!(missing, Err(PredictionsError::Read { .. })));
    Ok(())
}

#[test]
fn a_torn_last_line_is_passed_over_on_request() -> TestResult {
    let folder = tempfile::tempdir()?;
    let tolerant = Reading {
        torn_last_line: true,
        ..Reading::default()
    };
    let count = |text: &str, reading| {
        let path = written(folder.path(), "lines.jsonl", text).map_err(|_| ())?;
        let answers = Answers::read_lines(&path, reading).map_err(|_| ())?;
        Ok::<_, ()>(answers.by_key.len())
    };
    let torn = format!("{LINE}{}", &LINE[..40]);
    assert_eq!(count(&torn, tolerant), Ok(1));
    assert_eq!(count(&torn, Reading::default()), Err(()));
    // With its end, a damaged line is no torn one.
    assert_eq!(count(&format!("{torn}\n"), tolerant), Err(()));
    // Only the line feed is missing.
    assert_eq!(count(LINE.trim_end(), Reading::default()), Ok(1));
    Ok(())
}

#[test]
fn masks_are_read_from_a_folder() -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    GrayImage::from_fn(3, 2, |x, _| Luma([u8::from(x == 1)])).save(at("grey.png"))?;
    RgbImage::from_fn(3, 2, |x, _| Rgb([0, 0, u8::from(x == 1)])).save(at("rgb.png"))?;
    // Opaque everywhere, which says nothing about the mask.
    GrayAlphaImage::from_fn(3, 2, |x, _| LumaA([u8::from(x == 1), 255])).save(at("alpha.png"))?;
    let deep: ImageBuffer<Luma<u16>, _> =
        ImageBuffer::from_fn(3, 2, |x, _| Luma([u16::from(x == 1)]));
    deep.save(at("a_b_.png"))?;
    fs::write(at("notes.txt"), "not a mask")?;
    let ids = ["grey", "rgb", "alpha", "a/b?", "missing"];
    let answers = Answers::read_folder(folder.path(), ids, Reading::default())?;
    assert_eq!(answers.by_key.len(), 4);
    let column = Mask::from_bits(2, 3, [false, true, false].repeat(2))?.to_rle();
    for (place, answer) in answers.by_key.values() {
        assert_eq!(answer.rle.as_ref(), Some(&column), "{place}");
        assert_eq!((answer.found, place.line), (None, None));
    }
    Ok(())
}

#[test]
fn faults_of_folders_are_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let read = |ids: &[&'static str], keep_going| {
        let reading = Reading {
            keep_going,
            ..Reading::default()
        };
        Answers::read_folder(folder.path(), ids.iter().copied(), reading)
    };
    let refused = |ids: &[&'static str]| {
        let error = read(ids, false).expect_err("something is wrong");
        message(folder.path(), &error)
    };
    assert_eq!(
        refused(&["a:1", "a/1"]),
        "expressions `a:1` and `a/1` would both be in `a_1.png`"
    );
    fs::write(folder.path().join("9.png"), "no PNG")?;
    assert_eq!(
        refused(&["8"]),
        "`9.png`: expression `9` is not in the data set"
    );
    let text = refused(&["9"]);
    assert!(
        text.starts_with("`9.png`: not a mask in a PNG file: "),
        "{text}"
    );
    assert_eq!(read(&["8"], true)?.skipped.len(), 1);
    assert_eq!(read(&["9"], true)?.skipped.len(), 1);
    Ok(())
}

fn expected() -> HashMap<&'static str, HashSet<&'static str>> {
    HashMap::from([
        ("a", HashSet::from(["1", "2"])),
        ("b", HashSet::from(["3"])),
        ("c", HashSet::from(["4", "5"])),
    ])
}

#[test]
fn a_killed_run_goes_on_behind_its_last_whole_picture() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("predictions.jsonl");
    let (a, b) = (
        [prediction("a", "1"), prediction("a", "2")],
        [prediction("b", "3")],
    );
    let c = [prediction("c", "4"), prediction("c", "5")];
    let nothing = Resume::read(&path, &expected())?;
    assert_eq!(nothing, Resume::default());
    let mut writer = Writer::open(&path, &nothing)?;
    for picture in [&a[..], &b, &c] {
        writer.append(picture)?;
    }
    let whole = fs::read(&path)?;
    let resume = Resume::read(&path, &expected())?;
    assert_eq!(resume.done, [&a[..], &b, &c].concat());

    // Killed after every byte there is.
    let ends: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').collect();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length])?;
        let resume = Resume::read(&path, &expected())?;
        let done = match length {
            _ if length > ends[2] => 3,
            _ if length > ends[1] => 2,
            _ => 0,
        };
        assert_eq!(resume.done.len(), done, "{length} bytes");
        let mut writer = Writer::open(&path, &resume)?;
        for picture in [&a[..], &b, &c] {
            if !resume.done.contains(&picture[0]) {
                writer.append(picture)?;
            }
        }
        assert_eq!(fs::read(&path)?, whole, "{length} bytes");
    }
    Ok(())
}

#[test]
fn a_file_of_something_else_is_not_continued() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("predictions.jsonl");
    let cases = [
        (
            vec![prediction("d", "1")],
            "`predictions.jsonl`, line 1: picture `d` is not in the data set",
        ),
        (
            vec![prediction("b", "3"), prediction("a", "3")],
            "`predictions.jsonl`, line 2: expression `3` is not in the data set",
        ),
        (
            vec![prediction("b", "3"), prediction("b", "3")],
            "`predictions.jsonl`, line 2: a second prediction for expression `3`; \
             the first is in `predictions.jsonl`, line 1",
        ),
    ];
    for (lines, expected_message) in cases {
        Writer::open(&path, &Resume::default())?.append(&lines)?;
        let error = Resume::read(&path, &expected()).expect_err(expected_message);
        assert_eq!(message(folder.path(), &error), expected_message);
    }
    fs::write(&path, format!("{{}}\n{LINE}"))?;
    let error = Resume::read(&path, &expected()).expect_err("the first line is damaged");
    assert!(matches!(error, PredictionsError::Json { .. }));
    Ok(())
}

#[test]
fn shards_are_joined() -> TestResult {
    let folder = tempfile::tempdir()?;
    let shard = |name: &str, lines: &[Prediction]| {
        let path = folder.path().join(name);
        Writer::open(&path, &Resume::default())?.append(lines)?;
        Ok::<_, PredictionsError>(path)
    };
    let first = shard("0.jsonl", &[prediction("a", "1"), prediction("a", "2")])?;
    let second = shard("1.jsonl", &[prediction("b", "3")])?;
    let merged = folder.path().join("all.jsonl");
    let count = merge(&[first.clone(), second.clone()], &merged)?;
    assert_eq!(count, 3);
    let text = fs::read_to_string(&first)? + &fs::read_to_string(&second)?;
    assert_eq!(fs::read_to_string(&merged)?, text);

    let again = shard("2.jsonl", &[prediction("a", "2")])?;
    let error = merge(&[first, second, again], &merged).expect_err("one is there twice");
    assert_eq!(
        message(folder.path(), &error),
        "`2.jsonl`, line 1: a second prediction for expression `2`; the first is in `0.jsonl`, line 2"
    );
    // The merged file of before is untouched, and nothing else is left.
    assert_eq!(fs::read_to_string(&merged)?, text);
    assert_eq!(fs::read_dir(folder.path())?.count(), 4);
    Ok(())
}
