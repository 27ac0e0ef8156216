//! `refseg ask`, with models that the official code has computed.

use crate::desk::{Desk, MODEL, Ran, fixture};
use serde_json::{Value, json};

/// The phrase, as the first case of the fixture asks for it.
const QUESTION: &str = "Please provide the bounding box coordinate of the region this sentence \
                        describes (1):\n\"side view bird\".";
/// Tokens that the official code answers with.
const IDS: [u32; 6] = [429, 847, 1291, 847, 847, 847];

fn llava() -> String {
    fixture("llava/llava-next-tiny").display().to_string()
}

fn desk() -> Desk {
    Desk::new().with("llava/llava-next-tiny/image0.png")
}

#[test]
fn llava_answers_as_the_reference_does() {
    let (desk, model) = (desk(), llava());
    let args = [
        "ask",
        "image0.png",
        QUESTION,
        "-m",
        &model,
        "--max-tokens",
        "6",
    ];
    let document = desk.json(&[&args[..], &["--json"]].concat());
    assert_eq!(
        document["image"],
        json!({"path": "image0.png", "width": 160, "height": 120})
    );
    assert_eq!(document["question"], QUESTION);
    assert_eq!(document["ids"], json!(IDS));
    assert_eq!(document["answer"], " whi227671227227227");
    assert_eq!(document["ended"], false);
    let sure = document["log_probabilities"].as_array().expect("numbers");
    assert_eq!(sure.len(), IDS.len());
    assert!(sure.iter().all(|p| p.as_f64().is_some_and(|p| p < 0.0)));
    assert_eq!(desk.names(), ["image0.png"]);

    let ran = desk.run(&args);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, " whi227671227227227\n")
    );
    let [times, cut] = ran.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("two lines: {}", ran.stderr);
    };
    assert!(
        times.starts_with("load ") && times.contains("(212 tokens)"),
        "{times}"
    );
    assert_eq!(cut, "warning: the answer was cut off after 6 tokens");

    let adapter = format!("{model}/adapter");
    let adapted = desk.run(&[&args[..], &["--adapter", &adapter, "-q"]].concat());
    assert_eq!((adapted.code, adapted.stderr.as_str()), (0, ""));
    assert_ne!(adapted.stdout, ran.stdout);
}

#[test]
fn internvl_answers_and_the_environment_is_read() {
    let desk = desk();
    let mut command = desk.command(&["ask", "image0.png", "What is this?"]);
    command.envs([
        (
            "REFSEG_MODEL",
            fixture(MODEL).display().to_string().as_str(),
        ),
        ("REFSEG_MAX_TOKENS", "4"),
        ("REFSEG_JSON", "1"),
        ("REFSEG_QUIET", "1"),
    ]);
    let ran = Ran::of(command);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let count = document["ids"].as_array().map(Vec::len);
    assert!(count == Some(4) || document["ended"] == true, "{document}");
}

#[test]
fn a_model_without_conversations_says_so() {
    let ran = desk().run(&["ask", "image0.png", "What is this?", "-m", "builtin"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .starts_with("error: `builtin` is not a model: there is no such folder\n")
    );
    assert!(
        ran.stderr.contains("hint: give the folder of a LLaVA-NeXT"),
        "{}",
        ran.stderr
    );
}
