//! `refseg eval`, `refseg score` and `refseg data check`, against the official code's numbers
//! and against each other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::desk::{Desk, LORA_MODEL, MODEL, Ran, check_snapshot, fixture};

/// Eight pictures in the layout of the published data sets.
fn mini_refcoco() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../refseg-data/tests/fixtures/mini-refcoco")
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("UTF-8").to_owned()
}

/// Fixture: what the official evaluation gives with each fixture model, split by split.
#[test]
fn the_official_protocol_gives_the_official_metrics() {
    let desk = Desk::new();
    for model in [MODEL, LORA_MODEL] {
        let expected = mini_refcoco().join(format!("expected.{model}.json"));
        let expected = fs::read_to_string(expected).expect("a fixture");
        let expected: Value = serde_json::from_str(&expected).expect("JSON");
        for (name, expected) in expected.as_object().expect("splits") {
            let parts: Vec<&str> = name.split('|').collect();
            let (model, data) = (text(fixture(model)), text(mini_refcoco()));
            let document = desk.json(&[
                "eval",
                "--dataset",
                parts[0],
                "--split",
                parts[2],
                "--data",
                &data,
                "-m",
                &model,
                "--protocol",
                "official",
                "--json",
            ]);
            let metrics = &document["metrics"];
            let close = |key: &str, official: &str, tolerance: f64| {
                if let Some(official) = expected[official].as_f64() {
                    let found = metrics[key].as_f64().expect("a number");
                    assert!(
                        (found - official).abs() <= tolerance,
                        "{name} of {model}, {key}: {found}, officially {official}"
                    );
                }
            };
            close("cIoU", "cIoU", 0.05);
            close("gIoU", "gIoU", 0.05);
            close("rec_prec_at_0_5", "prec_at_0_5", 0.05);
            // Published numbers are rounded in f32.
            close("N_acc", "N_acc", 1e-4);
            close("T_acc", "T_acc", 1e-4);
            let counts = &document["counts"];
            assert_eq!(counts["pictures"], expected["images"], "{name}");
            assert_eq!(counts["expressions"], expected["expressions"], "{name}");
        }
    }
}

/// Options of a small evaluation on drawn scenes.
const SCENES: [&str; 9] = [
    "eval",
    "--count",
    "12",
    "--size",
    "64",
    "--threads",
    "2",
    "--protocol",
    "single",
];

fn metrics(desk: &Desk, folder: &str) -> String {
    fs::read_to_string(desk.path().join(folder).join("metrics.json")).expect("metrics.json")
}

#[test]
fn a_killed_run_ends_with_the_same_metrics() {
    let desk = Desk::new();
    let whole = desk.run(&[&SCENES[..], &["--out", "whole"]].concat());
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let args = [&SCENES[..], &["--out", "killed"]].concat();
    let lines = || {
        let path = desk.path().join("killed/predictions.jsonl");
        fs::read(path).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count())
    };
    let mut kept = Vec::new();
    for attempt in 0..10 {
        let mut child = desk
            .command(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        // From before the model is loaded to behind a few pictures.
        thread::sleep(Duration::from_millis(20 + 90 * attempt));
        child.kill().expect("a child to kill");
        child.wait().expect("a child to wait for");
        kept.push(lines());
    }
    assert!(
        kept.is_sorted(),
        "nothing that was answered is lost: {kept:?}"
    );
    let resumed = desk.run(&args);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert_eq!(metrics(&desk, "killed"), metrics(&desk, "whole"));
    let answers = |folder: &str| {
        let path = desk.path().join(folder).join("predictions.jsonl");
        let text = fs::read_to_string(path).expect("predictions");
        let without_time = |line: &str| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            line["ms"].take();
            line
        };
        text.lines().map(without_time).collect::<Vec<_>>()
    };
    assert_eq!(answers("killed"), answers("whole"));

    let other = desk.run(&[&SCENES[..8], &["joint", "--out", "killed"]].concat());
    assert_eq!(other.code, 1);
    assert!(
        other.stderr.contains("asked with other settings"),
        "{}",
        other.stderr
    );
}

#[test]
fn a_file_of_predictions_scores_as_the_run_that_wrote_it() {
    let desk = Desk::new();
    let data = ["--count", "12", "--size", "64"];
    for (shard, folder) in [("1/2", "a"), ("2/2", "b")] {
        let ran = desk.run(&[&SCENES[..], &["--shard", shard, "--out", folder]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let whole = desk.json(&[&SCENES[..], &["--out", "whole", "--json"]].concat());
    let score = |files: &[&str]| desk.json(&[&["score"], files, &data, &["--json"]].concat());
    let merged = score(&[
        "a/predictions.jsonl",
        "b/predictions.jsonl",
        "--merge",
        "merged.jsonl",
    ]);
    for key in ["metrics", "counts", "kinds"] {
        assert_eq!(merged[key], whole[key], "{key}");
        assert_eq!(
            score(&["whole/predictions.jsonl"])[key],
            whole[key],
            "{key}"
        );
    }

    // A system is as good as itself, and better than one that finds nothing.
    let nothing: String = fs::read_to_string(desk.path().join("merged.jsonl"))
        .expect("predictions")
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            format!("{{\"id\": {}, \"rle\": null}}\n", line["expression"])
        })
        .collect();
    desk.write("nothing.jsonl", nothing.as_bytes());
    let same = score(&["merged.jsonl", "whole/predictions.jsonl"]);
    assert_eq!(same["difference"]["cIoU"]["difference"], 0.0);
    let worse = score(&["merged.jsonl", "nothing.jsonl", "--out", "compared"]);
    let ciou = &worse["difference"]["cIoU"];
    assert!(ciou["interval"]["high"].as_f64() < Some(0.0), "{ciou}");
    assert!(desk.path().join("compared/report.html").is_file());

    let missing = desk.run(&[&["score", "a/predictions.jsonl"], &data[..]].concat());
    assert_eq!((missing.code, missing.stdout.as_str()), (1, ""));
    assert!(
        missing
            .stderr
            .contains("there is no prediction for expression"),
        "{}",
        missing.stderr
    );
    let patient =
        desk.run(&[&["score", "a/predictions.jsonl", "--keep-going"], &data[..]].concat());
    assert_eq!(patient.code, 0, "{}", patient.stderr);
    assert!(patient.stderr.contains("passed over"), "{}", patient.stderr);
}

#[test]
fn blanked_rejections_score_no_better_than_published_rules() {
    let desk = Desk::new();
    let published = desk.json(&[&SCENES[..], &["--json"]].concat());
    let blanked = desk.json(&[&SCENES[..], &["--blank-rejected", "--json"]].concat());
    let of = |document: &Value, metric: &str| document["metrics"][metric].as_f64();
    assert_eq!(of(&published, "N_acc"), of(&blanked, "N_acc"));
    assert_eq!(of(&published, "T_acc"), of(&blanked, "T_acc"));
    assert_eq!(blanked["blank_rejected"], true);
    let interval = &published["metrics"]["cIoU_interval"];
    assert!(interval[0].as_f64() <= of(&published, "cIoU"), "{interval}");
    assert!(interval[1].as_f64() >= of(&published, "cIoU"), "{interval}");
}

#[test]
fn data_sets_are_checked() {
    let desk = Desk::new();
    let root = text(mini_refcoco());
    let args = ["data", "check", &root];
    let transcript = desk.run(&args).transcript(&args).replace(&root, "ROOT");
    check_snapshot("data-check.txt", &transcript);
    let report = desk.json(&["data", "check", &root, "--decode", "--json"]);
    assert!(
        report["sets"]
            .as_array()
            .is_some_and(|sets| sets.len() == 4),
        "{report}"
    );

    let nothing = desk.run(&["data", "check", "."]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""));
}

#[test]
fn answers_to_questions_are_scored() {
    let desk = Desk::new();
    let people = [
        "two", "2", "two", "3", "two", "two", "2", "two", "two", "many",
    ];
    let people: Vec<Value> = people
        .iter()
        .map(|it| serde_json::json!({"answer": it}))
        .collect();
    let annotation = serde_json::json!({
        "question_id": 1, "question_type": "how many", "answer_type": "number", "answers": people,
    });
    let annotations = serde_json::json!({"annotations": [annotation]});
    desk.write("annotations.json", annotations.to_string().as_bytes());
    desk.write("answers.json", br#"[{"question_id": 1, "answer": "2."}]"#);
    let args = [
        "score",
        "answers.json",
        "--dataset",
        "vqav2",
        "--data",
        "annotations.json",
    ];
    let document = desk.json(&[&args[..], &["--json"]].concat());
    // Two people said "2": each of them leaves one other, each of the rest leaves two.
    let expected = 100.0 * (2.0 * (1.0 / 3.0) + 8.0 * (2.0 / 3.0)) / 10.0;
    let found = document["metrics"]["accuracy"].as_f64().expect("a number");
    assert!((found - expected).abs() < 1e-9, "{found}, {expected}");
}

/// A language model is asked about its pictures, and judged as anybody's answers are.
#[test]
fn a_model_answers_visual_questions() {
    let desk = Desk::new();
    fs::create_dir(desk.path().join("val2014")).expect("a folder");
    for id in [7, 42] {
        let name = format!("val2014/COCO_val2014_{id:012}.jpg");
        fs::copy(
            fixture(&format!("{MODEL}/image.png")),
            desk.path().join(name),
        )
        .expect("a picture");
    }
    let asked = [
        (1, 42, "Is it red?"),
        (2, 7, "How many?"),
        (3, 42, "Is it?"),
    ];
    let questions: Vec<Value> = asked
        .iter()
        .map(|(id, image, text)| json!({"question_id": id, "image_id": image, "question": text}))
        .collect();
    desk.write(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        json!({"questions": questions}).to_string().as_bytes(),
    );
    let annotations: Vec<Value> = asked
        .iter()
        .map(|(id, ..)| {
            json!({"question_id": id, "question_type": "is", "answer_type": "other",
                   "answers": vec![json!({"answer": "no"}); 10]})
        })
        .collect();
    let known = "v2_mscoco_val2014_annotations.json";
    desk.write(
        known,
        json!({"annotations": annotations}).to_string().as_bytes(),
    );

    let model = fixture(MODEL).display().to_string();
    let eval = |more: &[&str]| {
        let args = [
            "eval",
            "--dataset",
            "vqav2",
            "--data",
            ".",
            "-m",
            &model,
            "--out",
            "run",
        ];
        desk.json(&[&args[..], &["--json"], more].concat())
    };
    let whole = eval(&[]);
    assert_eq!(whole["counts"]["questions"], 3);
    let judged = desk.json(&[
        "score",
        "run/answers.json",
        "--dataset",
        "vqav2",
        "--data",
        known,
        "--json",
    ]);
    assert_eq!(whole, judged);
    // Questions are asked as `ask` asks them, those of one picture together.
    let said = fs::read(desk.path().join("run/answers.json")).expect("answers");
    let said: Value = serde_json::from_slice(&said).expect("JSON");
    for (i, (id, image, text)) in asked.iter().enumerate() {
        let picture = format!("val2014/COCO_val2014_{image:012}.jpg");
        let question = format!("{text} Answer:");
        let alone = desk.json(&[
            "ask",
            &picture,
            &question,
            "-m",
            &model,
            "--max-tokens",
            "10",
            "--json",
        ]);
        let answer = alone["answer"].as_str().expect("text").trim();
        assert_eq!(said[i], json!({"question_id": id, "answer": answer}));
    }
    // The first picture has two of the questions.
    assert_eq!(eval(&["--limit", "1"])["counts"]["questions"], 2);
}

/// Everything that is wrong with how evaluations are called, or with what they are given.
#[test]
fn evaluations_fail_in_sentences() {
    let desk = Desk::new();
    desk.write(
        "torn.jsonl",
        b"{\"id\": \"0/0\", \"rle\": {\"size\": [64, 64], \"co",
    );
    desk.write(
        "sum.jsonl",
        b"{\"id\": \"0/0\", \"rle\": {\"size\": [64, 64], \"counts\": [3]}}\n",
    );
    desk.write("unknown.jsonl", b"{\"id\": \"9/9\", \"rle\": null}\n");
    let scenes = ["--count", "1", "--size", "64"];
    let cases: [&[&str]; 8] = [
        &["eval", "--dataset", "refcoco"],
        &["eval", "--dataset", "refcoco", "--data", "nowhere"],
        &["eval", "--dataset", "coco2017"],
        &["eval", "--split", "val"],
        &["eval", "--shard", "3/2"],
        &["score", "torn.jsonl"],
        &["score", "sum.jsonl"],
        &["score", "unknown.jsonl", "--keep-going"],
    ];
    let mut transcript = String::new();
    for args in cases {
        let args = if args[0] == "score" {
            [args, &scenes].concat()
        } else {
            args.to_vec()
        };
        let ran: Ran = desk.run(&args);
        transcript += &ran.transcript(&args);
        transcript.push('\n');
    }
    check_snapshot("evaluation-failures.txt", &transcript);
}
