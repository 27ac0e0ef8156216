//! `refseg info` and `refseg convert`.

use std::fs;

use crate::desk::{Desk, LORA_MODEL, MODEL, Ran, check_snapshot, fixture};
use serde_json::Value;

#[test]
fn info_says_what_a_folder_holds() {
    let desk = Desk::new();
    let mut transcript = String::new();
    for name in [MODEL, LORA_MODEL] {
        let folder = fixture(name).display().to_string();
        let ran = desk.run(&["info", &folder]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        transcript += &ran.transcript(&["info", &folder]);
        let document = desk.json(&["info", &folder, "--json"]);
        assert_eq!(document["weights"]["missing"], serde_json::json!([]));
        assert_eq!(document["weights"]["lora"], name == LORA_MODEL);
    }
    check_snapshot("info.txt", &transcript);
}

#[test]
fn info_says_how_a_machine_computes() {
    let desk = Desk::new();
    let ask = |set: &str, args: &[&str]| {
        let mut command = desk.command(args);
        command.env("REFSEG_CPU", set);
        Ran::of(command)
    };
    let ran = ask("portable", &["info", "--cpu"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for line in [
        "uses     portable (REFSEG_CPU)",
        "auto     f32",
        "bf16     widened to f32, as the compiler vectorises it; attention in f32",
        "int16    pairs of 16 bits, as the compiler vectorises it; attention in f32",
    ] {
        assert!(
            ran.stdout.lines().any(|found| found == line),
            "{}",
            ran.stdout
        );
    }
    let document: Value =
        serde_json::from_str(&ask("portable", &["info", "--cpu", "--json"]).stdout).expect("JSON");
    for what in ["products", "attention"] {
        let precisions: Vec<_> = document[what].as_object().expect("a map").keys().collect();
        assert_eq!(precisions, ["bf16", "f32", "int16", "int8"], "{what}");
    }
    let ran = ask("abacus", &["info", "--cpu"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("`abacus`"), "{}", ran.stderr);
}

#[test]
fn a_tensor_too_many_is_a_warning_and_one_too_few_an_error() {
    let desk = Desk::new().with(&format!("{MODEL}/image.png"));
    let folder = desk.path().join("model");
    fs::create_dir(&folder).expect("a folder");
    for entry in fs::read_dir(fixture(MODEL)).expect("the fixture") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("a copy");
    }
    // Names of one length keep the offsets in the header right.
    let weights = fs::read(folder.join("model.safetensors")).expect("weights");
    let renamed = replaced(&weights, b"\"mlp1.0.bias\"", b"\"nlp1.0.bias\"");
    fs::write(folder.join("model.safetensors"), renamed).expect("weights");
    let ran = desk.run(&["segment", "image.png", "a ring", "-m", "model"]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "error: `model/model.safetensors`: no tensor `mlp1.0.bias`\n"
    );
    let document = desk.json(&["info", "model", "--json"]);
    assert_eq!(
        document["weights"]["missing"],
        serde_json::json!(["mlp1.0.bias"])
    );
    assert_eq!(
        document["weights"]["unused"],
        serde_json::json!(["nlp1.0.bias"])
    );

    let counter = b"\"res_decoder.conv1.1.num_batches_tracked\"";
    let extra = b"\"res_decoder.conv1.1.num_batches_trackee\"";
    fs::write(
        folder.join("model.safetensors"),
        replaced(&weights, counter, extra),
    )
    .expect("weights");
    let ran = desk.run(&[
        "segment",
        "image.png",
        "a ring",
        "-m",
        "model",
        "--no-overlay",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let warning = "warning: model has tensors that no part of the network uses: `res_decoder.conv1.1.num_batches_trackee`";
    assert_eq!(ran.stderr.lines().next(), Some(warning));
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .expect("the name in the header");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn a_merged_model_answers_as_the_one_with_lora() {
    let desk = Desk::new().with(&format!("{LORA_MODEL}/image.jpg"));
    let folder = fixture(LORA_MODEL).display().to_string();
    let ran = desk.run(&["convert", &folder, "merged", "--merge"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "merged\n"),
        "{}",
        ran.stderr
    );
    let config = fs::read_to_string(desk.path().join("merged/config.json")).expect("a config");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(
        (&config["use_llm_lora"], &config["torch_dtype"]),
        (&0.into(), &"float32".into())
    );
    assert!(desk.path().join("merged/tokenizer.model").is_file());

    let answers = |model: &str| {
        let args = [
            "segment",
            "image.jpg",
            "two red shapes",
            "-m",
            model,
            "--json",
            "--no-overlay",
            "--threads",
            "1",
        ];
        desk.json(&args)["results"].clone()
    };
    assert_eq!(answers("merged"), answers(&folder));
}

#[test]
fn a_type_can_be_changed() {
    let desk = Desk::new();
    let folder = fixture(MODEL).display().to_string();
    assert_eq!(
        desk.run(&["convert", &folder, "half", "--dtype", "bf16"])
            .code,
        0
    );
    let document = desk.json(&["info", "half", "--json"]);
    assert_eq!(
        document["weights"]["dtypes"],
        serde_json::json!({"BF16": 134})
    );
    assert_eq!(desk.names(), ["half"]);
}

/// Two gigabytes and some minutes: only when asked for.
#[test]
fn a_preset_becomes_a_model() {
    if std::env::var_os("REFSEG_SLOW").is_none() {
        return;
    }
    let desk = Desk::new();
    let ran = desk.run(&["init", "internvl2_5-1b", "model", "-q"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "model\n"),
        "{}",
        ran.stderr
    );
    let document = desk.json(&["info", "model", "--json"]);
    assert_eq!(document["weights"]["missing"], serde_json::json!([]));
    assert_eq!(document["weights"]["misshapen"], serde_json::json!([]));
    assert_eq!(document["tokenizer"]["size"], 151_676);
}

#[test]
fn a_profile_accounts_for_all_of_a_first_phrase() {
    let desk = Desk::new();
    let model = fixture(MODEL).display().to_string();
    let bench = [
        "bench",
        &model,
        "--profile",
        "--repeat",
        "2",
        "--precision",
        "int8",
    ];
    let profile = desk.json(&[&bench[..], &["--json", "-q"]].concat());
    let rows = profile["work"].as_array().expect("rows");
    // What was watched twice would leave less than nothing.
    let left = rows.last().expect("a row");
    assert!(left["ms"].as_f64() > Some(0.0), "{rows:?}");
    let named = |what: &str| {
        let is_it = |row: &&Value| {
            row["what"]
                .as_str()
                .is_some_and(|name| name.starts_with(what))
        };
        rows.iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("no {what} in {rows:?}"))
    };
    for what in ["attention", "product"] {
        assert!(named(what)["gflops"].as_f64() > Some(0.0), "{what}");
        assert!(named(what)["calls"].as_u64() > Some(0), "{what}");
    }
    assert_eq!(
        (&left["calls"], &named("all else")["ms"]),
        (&0.into(), &left["ms"])
    );
    assert_eq!(
        desk.run(&["bench", &model, "--profile", "--phrases", "2"])
            .code,
        2
    );
}
