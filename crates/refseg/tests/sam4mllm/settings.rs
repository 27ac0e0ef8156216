//! `sam4mllm.json`.

use std::{error::Error, fs, path::Path};

use refseg::{
    Options, Predictor,
    predictor::PredictorError,
    sam4mllm::{AnswerCount, Method, Pair, PairError, ProbePattern, Settings, Thresholds, Wording},
};
use tempfile::TempDir;

fn folder(text: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("sam4mllm.json"), text).expect("a file to write");
    folder
}

fn read(text: &str) -> Result<Pair, PairError> {
    Pair::from_folder(folder(text).path())
}

#[test]
fn everything_can_be_left_out() -> Result<(), Box<dyn Error>> {
    let folder = folder("{}");
    assert!(Pair::is_in(folder.path()));
    let pair = Pair::from_folder(folder.path())?;
    assert_eq!(pair.mllm, folder.path().join("mllm"));
    assert_eq!(pair.sam, folder.path().join("sam"));
    assert_eq!((pair.adapter, pair.sam_decoder), (None, None));
    assert_eq!(pair.settings, Settings::paper());
    Ok(())
}

#[test]
fn what_is_written_wins_over_the_preset() -> Result<(), Box<dyn Error>> {
    let pair = read(
        r#"{"mllm": "/models/llava", "sam": "../sam.pt", "preset": "code", "method": "ppg", "wording": "bbox",
            "probes": "random25", "threshold_yes": 0.6, "squash": 672, "max_tokens": 30, "seed": 4}"#,
    )?;
    assert_eq!(pair.mllm, Path::new("/models/llava"));
    assert!(pair.sam.ends_with("../sam.pt"));
    let expected = Settings {
        method: Method::Ppg,
        wording: Wording::BoundingBox,
        count: Some(AnswerCount::One),
        probes: ProbePattern::Random25,
        thresholds: Thresholds { no: 0.9, yes: 0.6 },
        squash: Some(672),
        max_tokens: 30,
        seed: 4,
    };
    assert_eq!(pair.settings, expected);
    assert_eq!(read(r#"{"preset": "code"}"#)?.settings, Settings::code());
    Ok(())
}

#[test]
fn what_means_nothing_is_an_error_that_says_where() {
    let of = |text: &str| {
        let error = read(text).expect_err(text);
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    };
    for (text, parts) in [
        ("{", ["sam4mllm.json", "pair of models", "EOF"]),
        (
            r#"{"mlm": "x"}"#,
            ["sam4mllm.json", "unknown field `mlm`", "`mllm`"],
        ),
        (
            r#"{"preset": "Paper"}"#,
            ["`preset`", "`Paper`", "`paper`, `code`"],
        ),
        (r#"{"probes": "grid7"}"#, ["`probes`", "`grid7`", "`grid5`"]),
        (r#"{"count": "2"}"#, ["`count`", "`2`", "`0+`"]),
        (
            r#"{"wording": "box"}"#,
            ["`wording`", "`box`", "`coords`, `bbox`"],
        ),
        (
            r#"{"method": "sam"}"#,
            ["`method`", "`sam`", "`pqpp`, `ppg`"],
        ),
        (
            r#"{"threshold_no": 1.5}"#,
            ["`threshold_no`", "1.5", "0 to 1"],
        ),
        (r#"{"squash": 0}"#, ["`squash`", "is 0", "4096"]),
        (r#"{"max_tokens": 0}"#, ["`max_tokens`", "is 0", "8192"]),
    ] {
        let error = of(text);
        for part in parts {
            assert!(error.contains(part), "{error} of {text}");
        }
    }
    let empty = tempfile::tempdir().expect("a temporary folder");
    assert!(!Pair::is_in(empty.path()));
    assert!(matches!(
        Pair::from_folder(empty.path()),
        Err(PairError::Read { .. })
    ));
}

#[test]
fn a_pair_without_its_models_says_which_is_missing() {
    let folder = folder("{}");
    let error = refseg::open(folder.path(), &Options::default()).expect_err("no models");
    assert!(error.to_string().contains("mllm"), "{error}");
    let error = Predictor::load(folder.path(), &Options::default()).expect_err("a pair");
    assert!(
        matches!(error, PredictorError::OtherMethod { .. }),
        "{error}"
    );
}
