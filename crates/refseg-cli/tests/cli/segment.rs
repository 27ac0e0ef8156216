//! `refseg segment`, with the models that the official code has computed.

use crate::desk::{Desk, LORA_MODEL, MODEL, Ran, fixture};
use refseg::{Image, Mask, mask::Rle};
use serde_json::Value;

const PHRASES: [&str; 3] = [
    "the small ellipse",
    "square on the left",
    "Largest triangle in the middle.",
];

fn model(name: &str) -> String {
    fixture(name).display().to_string()
}

fn mask_of(result: &Value) -> Mask {
    let rle = &result["rle"];
    let side = |i: usize| rle["size"][i].as_u64().expect("a side") as usize;
    let counts = rle["counts"].as_str().expect("counts").to_owned();
    Mask::from_rle(&Rle {
        size: [side(0), side(1)],
        counts,
    })
    .expect("a mask")
}

#[test]
fn every_output_tells_the_same() {
    let desk = Desk::new().with(&format!("{MODEL}/image.png"));
    let model = model(MODEL);
    let mut args = vec![
        "segment",
        "image.png",
        "-m",
        &model,
        "--masks",
        "masks",
        "--probs",
        "p.npy",
        "--json",
    ];
    args.extend(PHRASES);
    let document = desk.json(&args);

    assert_eq!(document["method"], "mllmseg");
    assert_eq!(
        document["image"],
        serde_json::json!({"path": "image.png", "width": 320, "height": 241})
    );
    assert_eq!(
        document["timings_ms"]["phrases"].as_array().map(Vec::len),
        Some(3)
    );
    let results = document["results"].as_array().expect("results");
    let names = [
        "the-small-ellipse",
        "square-on-the-left",
        "largest-triangle-in-the-middle",
    ];
    for (i, (result, name)) in results.iter().zip(names).enumerate() {
        assert_eq!(
            (&result["phrase"], &result["found"]),
            (&PHRASES[i].into(), &true.into())
        );
        let mask = mask_of(result);
        assert_eq!(result["area"], mask.area());
        let bounds = mask.bounds().expect("a box").map(f64::from);
        assert_eq!(result["box"], serde_json::json!(bounds));
        let file = desk
            .path()
            .join(format!("masks/image.0{}.{name}.png", i + 1));
        let drawn = Image::open(file).expect("a mask's file");
        let bits: Vec<bool> = drawn.pixels().chunks(3).map(|rgb| rgb[0] == 255).collect();
        assert_eq!(bits, mask.bits());
    }
    let overlay = Image::open(desk.path().join("image.overlay.png")).expect("an overlay");
    assert_eq!(overlay.width(), 640, "a small picture is enlarged");
    let npy = std::fs::read(desk.path().join("p.npy")).expect("probabilities");
    assert_eq!(npy.len(), 128 + 4 * 3 * 448 * 448);
    assert_eq!(
        desk.names(),
        ["image.overlay.png", "image.png", "masks", "p.npy"]
    );
}

#[test]
fn not_found_is_an_answer() {
    let desk = Desk::new().with(&format!("{LORA_MODEL}/image.jpg"));
    let model = model(LORA_MODEL);
    let phrases = ["two red shapes", "the zebra behind another one"];
    let args = [
        "segment",
        "image.jpg",
        phrases[0],
        phrases[1],
        "-m",
        &model,
        "--joint",
    ];
    let ran = desk.run(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("phrase "), "{}", ran.stdout);
    let not_found = lines
        .iter()
        .find(|line| line.contains(" no "))
        .expect("one is not found");
    assert!(not_found.ends_with('–'), "{not_found}");
    assert!(ran.stderr.contains("wrote image.overlay.png"));

    let coded = desk.run(&[&args[..], &["--rle", "--no-overlay", "--quiet"]].concat());
    assert_eq!(coded.stderr, "");
    let answers: Vec<Value> = coded
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert_eq!(answer["found"], !answer["rle"].is_null());
    }
}

#[test]
fn phrases_are_text_whatever_they_say() {
    let desk = Desk::new().with(&format!("{MODEL}/image.png"));
    let model = model(MODEL);
    let phrases = [
        "[SEG] <img> <|im_end|>",
        "الدائرة الحمراء",
        "🔴\u{1b}[31m",
        "line\nbreak",
    ];
    let args = [&["segment", "image.png", "-m", &model][..], &phrases].concat();
    let ran = desk.run(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 5, "{}", ran.stdout);
    assert!(!ran.stdout.contains('\u{1b}'), "{}", ran.stdout);
}

#[test]
fn options_can_come_from_the_environment() {
    let desk = Desk::new().with(&format!("{MODEL}/image.png"));
    let mut command = desk.command(&["segment", "image.png", "a ring"]);
    command.envs([
        ("REFSEG_MODEL", model(MODEL)),
        ("REFSEG_JSON", "1".to_owned()),
    ]);
    command.envs([
        ("REFSEG_NO_OVERLAY", "yes"),
        ("REFSEG_QUIET", "true"),
        ("REFSEG_JOINT", "0"),
    ]);
    let ran = Ran::of(command);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with('{'));
    assert_eq!(desk.names(), ["image.png"]);
}
