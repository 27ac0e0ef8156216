//! A language model and Segment Anything together: `sam4mllm.json`, and `--refine`.

use std::{fs, path::PathBuf};

use refseg::sam4mllm::{AnswerCount, Method, first_question, read_boxes};
use serde_json::{Value, json};

use crate::desk::{Desk, MODEL, Ran, fixture};

const SAM: &str = "sam/sam-vit-tiny";

/// A desk with a picture and a pair of small random models, changed by `settings`.
fn desk(settings: Value) -> Desk {
    let desk = Desk::new().with("sam/sam-vit-tiny/image0.png");
    let mut pair =
        json!({"mllm": fixture(MODEL), "sam": fixture(SAM), "method": "ppg", "max_tokens": 6});
    for (name, value) in settings.as_object().expect("an object") {
        pair[name] = value.clone();
    }
    fs::create_dir(desk.path().join("pair")).expect("a folder");
    desk.write("pair/sam4mllm.json", pair.to_string().as_bytes());
    desk
}

fn refiner() -> String {
    format!("sam:{}", fixture(SAM).display())
}

/// A random model says nothing that could be drawn: that is an answer, and it is told.
#[test]
fn a_pair_is_asked_like_any_other_model() {
    let desk = desk(json!({}));
    let args = [
        "segment",
        "image0.png",
        "cat",
        "-m",
        "pair",
        "--json",
        "--masks",
        "m",
    ];
    let ran = desk.run(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&document["model"], &document["method"]),
        (&json!("pair"), &json!("sam4mllm"))
    );
    let result = &document["results"][0];
    assert_eq!(
        (&result["found"], &result["box"]),
        (&json!(false), &Value::Null)
    );
    assert!(
        ran.stderr
            .contains("warning: about \"cat\" the model also said \""),
        "{}",
        ran.stderr
    );
    assert_eq!(
        desk.names(),
        ["image0.overlay.png", "image0.png", "m", "pair"]
    );
}

/// The pair of the program sees what is drawn; its halves can be asked alone.
#[test]
fn the_built_in_pair_needs_no_files() {
    let desk = Desk::new();
    let pair = ["-m", "builtin-sam4mllm", "--json"];
    let eval = [
        "eval",
        "--dataset",
        "scenes",
        "--count",
        "4",
        "--blank-rejected",
    ];
    let document = desk.json(&[&eval[..], &pair].concat());
    let giou = document["metrics"]["gIoU"].as_f64().expect("a number");
    // Whoever always says "not found" has 20, for so many phrases mean nothing.
    assert!(giou > 45.0, "{giou}");

    let picture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes.png");
    fs::copy(picture, desk.path().join("shapes.png")).expect("a picture");
    let question = first_question(Method::Pqpp, "the red ring", AnswerCount::ZeroOrMore);
    let ask = desk.json(&[&["ask", "shapes.png", &question][..], &pair].concat());
    let answer = ask["answer"].as_str().expect("an answer");
    assert_eq!(read_boxes(answer).said.len(), 1, "{answer}");
    let sam = [
        "sam",
        "shapes.png",
        "--box",
        "450,280,600,430",
        "--no-overlay",
    ];
    let drawn = desk.json(&[&sam[..], &pair].concat());
    assert!(drawn["results"][0]["masks"][0]["area"].as_u64() > Some(0));
    let bench = desk.json(&["bench", "builtin-sam4mllm", "--repeat", "1", "--json"]);
    assert_eq!(bench["points"]["points"], 25);
}

#[test]
fn what_a_pair_cannot_do_is_said() {
    let failed = |ran: Ran, code: i32, parts: &[&str]| {
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (code, ""),
            "{}",
            ran.stderr
        );
        for part in parts {
            assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
        }
    };
    let segment = |settings: Value, more: &[&str]| {
        let args = ["segment", "image0.png", "cat", "-m", "pair"];
        desk(settings).run(&[&args[..], more].concat())
    };
    failed(
        segment(json!({}), &["--joint"]),
        1,
        &["on its own", "hint: leave out --joint"],
    );
    failed(
        segment(json!({"sam": "nowhere.pt"}), &[]),
        1,
        &["pair/nowhere.pt", "no such file"],
    );
    failed(
        segment(json!({"mllm": "nowhere"}), &[]),
        1,
        &["pair/nowhere", "no such folder"],
    );
    failed(
        segment(json!({"probe": 1}), &[]),
        1,
        &["sam4mllm.json", "unknown field `probe`"],
    );
    failed(
        segment(json!({}), &["--refine", "mobile_sam.pt"]),
        2,
        &["expected `sam:`"],
    );
    failed(
        segment(json!({}), &["--refine", "sam:none.pt"]),
        1,
        &["`none.pt`", "no such file"],
    );
    let ran = desk(json!({})).run(&["info", "pair"]);
    failed(ran, 1, &["pair of models", "hint: "]);
    // The words that PQPP asks for are none of this tokenizer's.
    let settings = json!({"method": "pqpp"});
    failed(segment(settings, &[]), 1, &["\"No\" is 2 tokens", "`ppg`"]);
}

/// What Segment Anything draws in the box of the first mask is what it draws in that box.
#[test]
fn masks_are_drawn_anew_from_their_boxes() {
    let desk = Desk::new();
    let picture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes.png");
    fs::copy(picture, desk.path().join("shapes.png")).expect("a picture");
    let (sam, refiner) = (fixture(SAM).display().to_string(), refiner());
    let args = [
        "segment",
        "shapes.png",
        "the red ring",
        "the green kettle",
        "--json",
        "--no-overlay",
    ];
    let rough = desk.json(&args);
    let fine = desk.json(&[&args[..], &["--refine", &refiner]].concat());
    assert_eq!(fine["method"], "mllmseg+sam");
    assert_eq!(fine["model"], format!("builtin refined by {sam}"));
    let (rough, fine) = (&rough["results"], &fine["results"]);
    assert_eq!(rough[0]["found"], true);
    let sides = rough[0]["box"].as_array().expect("a box").iter();
    let sides: Vec<String> = sides.map(Value::to_string).collect();
    let of_sam = desk.json(&[
        "sam",
        "shapes.png",
        "-m",
        &sam,
        "--box",
        &sides.join(","),
        "--json",
        "--no-overlay",
    ]);
    let mask = &of_sam["results"][0]["masks"][0];
    assert!(mask["area"].as_u64() > Some(0));
    for part in ["rle", "score", "box", "area"] {
        assert_eq!(fine[0][part], mask[part], "{part}");
    }
    for part in ["found", "presence"] {
        assert_eq!(fine[0][part], rough[0][part], "{part}");
    }
    // What was not found stays as it was.
    assert_eq!(rough[1]["found"], false);
    assert_eq!(rough[1], fine[1]);
}

#[test]
fn any_method_can_be_evaluated() {
    let desk = desk(json!({}));
    let refiner = refiner();
    let eval = |more: &[&str]| {
        let args = [
            "eval",
            "--dataset",
            "scenes",
            "--count",
            "2",
            "--size",
            "96",
            "--json",
        ];
        desk.run(&[&args[..], more].concat())
    };
    let metrics = |ran: Ran| {
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        document
    };
    let pair = metrics(eval(&["-m", "pair", "--out", "run"]));
    // It found nothing: wrong where there is something, right where there is nothing.
    assert_eq!(
        (&pair["metrics"]["T_acc"], &pair["metrics"]["cIoU"]),
        (&json!(0.0), &json!(0.0))
    );
    assert_eq!(pair["metrics"]["N_acc"], json!(100.0));
    // The models behind the pair are part of what the answers come from.
    let other =
        json!({"mllm": fixture(MODEL), "sam": fixture(SAM), "method": "ppg", "max_tokens": 7});
    desk.write("pair/sam4mllm.json", other.to_string().as_bytes());
    let ran = eval(&["-m", "pair", "--out", "run"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("other settings"), "{}", ran.stderr);

    let rough = metrics(eval(&[]));
    let fine = metrics(eval(&["--refine", &refiner]));
    assert_eq!(rough["metrics"]["T_acc"], fine["metrics"]["T_acc"]);
    assert_ne!(rough["metrics"]["cIoU"], fine["metrics"]["cIoU"]);
    assert!(
        fine["command"]
            .as_str()
            .expect("a command")
            .contains("--refine sam:")
    );
}

#[test]
fn an_adapter_is_part_of_the_model() {
    let llava = fixture("llava/llava-next-tiny");
    let digest = |adapter: Value| {
        let desk = desk(json!({"mllm": &llava, "adapter": adapter, "method": "pqpp"}));
        let args = [
            "eval",
            "--dataset",
            "scenes",
            "--count",
            "1",
            "--size",
            "96",
            "--json",
        ];
        let document = desk.json(&[&args[..], &["-m", "pair"]].concat());
        document["model_sha256"]
            .as_str()
            .expect("a digest")
            .to_owned()
    };
    let adapted = digest(json!(llava.join("adapter")));
    assert_ne!(adapted, digest(Value::Null));
}
