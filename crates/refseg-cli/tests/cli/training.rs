//! `refseg scenes`, `refseg train`, and what can be done with the model that it leaves.

use std::fs;

use crate::desk::Desk;
use serde_json::Value;

#[test]
fn scenes_are_a_data_set() {
    let desk = Desk::new();
    let args = [
        "scenes", "data", "--count", "6", "--val", "2", "--test", "1", "--size", "96", "--json",
    ];
    let document = desk.json(&args);
    assert_eq!(
        (&document["images"], &document["phrases"]),
        (&10.into(), &80.into())
    );
    for file in [
        "refcoco/refs(unc).p",
        "refcoco/instances.json",
        "grefcoco/grefs(unc).json",
    ] {
        assert!(
            desk.path().join("data/refer_seg").join(file).is_file(),
            "{file}"
        );
    }
    let again = desk.run(&args);
    assert_eq!((again.code, again.stdout.as_str()), (1, ""));
    assert!(
        again
            .stderr
            .contains("\nhint: give another folder, or --overwrite"),
        "{}",
        again.stderr
    );
    assert_eq!(desk.run(&[&args[..], &["--overwrite"]].concat()).code, 0);
}

#[test]
fn a_run_leaves_a_model_that_every_command_takes() {
    let desk = Desk::new();
    let mut args = vec![
        "train",
        "--out",
        "run",
        "--sight-steps",
        "1",
        "--pictures",
        "2",
    ];
    args.extend([
        "--workers",
        "1",
        "--phrases",
        "4",
        "--masks",
        "2",
        "--every",
        "2",
        "--held-out",
        "1",
        "--steps",
        "3",
    ]);
    let ran = desk.run(&args);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "run/model\n"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("held out: cIoU ") && ran.stderr.contains("after step 3"),
        "{}",
        ran.stderr
    );
    let log = fs::read_to_string(desk.path().join("run/log.jsonl")).expect("a log");
    let steps: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        steps
            .iter()
            .filter(|record| record["loss"].is_number())
            .count(),
        3
    );
    assert_eq!(
        steps
            .iter()
            .filter(|record| record["held_out"].is_object())
            .count(),
        2
    );
    let curve = fs::read_to_string(desk.path().join("run/curve.svg")).expect("a curve");
    assert!(curve.starts_with("<svg"));

    let again = desk.run(&args);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(
        again.stderr.starts_with("going on after step 3 of 3\n"),
        "{}",
        again.stderr
    );
    let other = desk.run(&[&args[..], &["--seed", "9"]].concat());
    assert_eq!(other.code, 1);
    assert!(
        other.stderr.contains("holds a run with other settings"),
        "{}",
        other.stderr
    );

    let scores = |threads: &str, protocol: &str| {
        let base = [
            "eval",
            "-m",
            "run/model",
            "--count",
            "5",
            "--size",
            "112",
            "--json",
        ];
        desk.json(&[&base[..], &["--threads", threads, "--protocol", protocol]].concat())
    };
    let single = scores("1", "single");
    assert_eq!(single, scores("3", "single"), "threads change nothing");
    assert_eq!(
        (&single["counts"]["expressions"], &single["leak_free"]),
        (&40.into(), &true.into())
    );
    assert_eq!(scores("2", "official")["leak_free"], false);

    let bench = desk.json(&[
        "bench",
        "run/model",
        "--repeat",
        "1",
        "--phrases",
        "2",
        "--json",
        "-q",
    ]);
    assert_eq!(bench["phrases"], 2);
    assert!(bench["first_phrase_ms"].as_f64() >= bench["encode_ms"].as_f64());
}
