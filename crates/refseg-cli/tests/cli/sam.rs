//! `refseg sam`, with a model that the official code has computed.

use crate::desk::{Desk, Ran, fixture};
use refseg::{Image, Mask, mask::Rle};
use serde_json::{Value, json};

fn model() -> String {
    fixture("sam/sam-vit-tiny").display().to_string()
}

fn desk() -> Desk {
    Desk::new().with("sam/sam-vit-tiny/image0.png")
}

fn mask_of(mask: &Value) -> Mask {
    let rle = &mask["rle"];
    let side = |i: usize| rle["size"][i].as_u64().expect("a side") as usize;
    let counts = rle["counts"].as_str().expect("counts").to_owned();
    let size = [side(0), side(1)];
    Mask::from_rle(&Rle { size, counts }).expect("a mask")
}

/// The values of a file whose header has 128 bytes and says this shape.
fn array(desk: &Desk, name: &str, shape: &str) -> Vec<f32> {
    let bytes = std::fs::read(desk.path().join(name)).expect("an array");
    let (header, values) = bytes.split_at(128);
    let header = String::from_utf8_lossy(header);
    assert!(header.contains(&format!("'shape': {shape}")), "{header}");
    let values = values.as_chunks().0.iter();
    values.map(|&value| f32::from_le_bytes(value)).collect()
}

#[test]
fn every_output_tells_the_same() {
    let (desk, model) = (desk(), model());
    let document = desk.json(&[
        "sam",
        "image0.png",
        "-m",
        &model,
        "--box",
        "16,24.1,297.6,233.77",
        "--point",
        "96,96.4",
        "--point=259.2,53.02",
        "--not",
        "198.4,171.11",
        "--multimask",
        "--json",
        "--masks",
        "masks",
        "--logits",
        "l.npy",
        "--low-res",
        "r.npy",
    ]);
    assert_eq!(document["method"], "sam");
    assert_eq!(
        document["image"],
        json!({"path": "image0.png", "width": 320, "height": 241})
    );
    let results = document["results"].as_array().expect("results");
    assert_eq!(results.len(), 1);
    let result = &results[0];
    assert_eq!(result["points"], json!([[96.0, 96.4], [259.2, 53.02]]));
    assert_eq!(result["not_points"], json!([[198.4, 171.11]]));
    assert_eq!(result["prompt_box"], json!([16.0, 24.1, 297.6, 233.77]));
    let masks = result["masks"].as_array().expect("masks");
    // The case `box_3points_multi` of the fixture.
    let best = result["best"].as_u64().expect("an index") as usize;
    let scores: Vec<f64> = masks
        .iter()
        .filter_map(|mask| mask["score"].as_f64())
        .collect();
    assert_eq!(scores.len(), 3);
    assert!(scores.iter().all(|score| *score <= scores[best]));
    for (found, expected) in scores.iter().zip(SCORES) {
        assert!(
            (found - expected).abs() < 1e-4,
            "{found}, expected {expected}"
        );
    }
    let logits = array(&desk, "l.npy", "(3, 241, 320)");
    assert_eq!(array(&desk, "r.npy", "(3, 64, 64)").len(), 3 * 64 * 64);
    for (i, (mask, logits)) in masks.iter().zip(logits.chunks(241 * 320)).enumerate() {
        let drawn = mask_of(mask);
        let bits: Vec<bool> = logits.iter().map(|&logit| logit > 0.0).collect();
        assert_eq!(drawn.bits(), bits);
        assert_eq!(mask["area"], drawn.area());
        let bounds = drawn.bounds().map(|bounds| bounds.map(f64::from));
        assert_eq!(mask["box"], json!(bounds));
        let file = desk.path().join(format!("masks/image0.0{}.png", i + 1));
        let file = Image::open(file).expect("a mask's file");
        let bits: Vec<bool> = file.pixels().chunks(3).map(|rgb| rgb[0] == 255).collect();
        assert_eq!(drawn.bits(), bits);
    }
    let overlay = Image::open(desk.path().join("image0.overlay.png")).expect("an overlay");
    assert_eq!(overlay.width(), 640, "a small picture is enlarged");
    let names = [
        "image0.overlay.png",
        "image0.png",
        "l.npy",
        "masks",
        "r.npy",
    ];
    assert_eq!(desk.names(), names);
}

/// What the official code computes.
const SCORES: [f64; 3] = [-0.059_305, 0.071_606, 0.622_584];

#[test]
fn a_mask_can_be_refined_and_a_checkpoint_be_a_file() {
    let desk = desk();
    let file = fixture("sam/sam-vit-tiny/model.safetensors")
        .display()
        .to_string();
    let first = [
        "sam",
        "image0.png",
        "-m",
        &file,
        "--box",
        "67.2,43.38,236.8,200.03",
    ];
    let ran = desk.run(&[&first[..], &["--low-res", "m.npy", "--no-overlay"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let row = ran.stdout.lines().nth(1).expect("a row").to_owned();
    assert!(row.starts_with("box 67.2,43.38,236.8,200.03"), "{row}");
    let refined =
        desk.run(&[&first[..], &["--mask-input", "m.npy", "--no-overlay", "-q"]].concat());
    assert_eq!((refined.code, refined.stderr.as_str()), (0, ""));
    assert_ne!(refined.stdout.lines().nth(1), Some(row.as_str()));
}

#[test]
fn each_box_is_a_prompt() {
    let (desk, model) = (desk(), model());
    let boxes = ["10,12,90.5,80.25", "160,96.4,319,240", "0,0,319.68,240.759"];
    let mut args = vec![
        "sam",
        "image0.png",
        "-m",
        &model,
        "--json",
        "--low-res",
        "r.npy",
    ];
    args.extend(boxes.iter().flat_map(|b| ["--box", b]));
    let document = desk.json(&args);
    let results = document["results"].as_array().expect("results");
    assert_eq!(results.len(), 3);
    for (result, text) in results.iter().zip(boxes) {
        let numbers: Vec<f64> = text.split(',').filter_map(|n| n.parse().ok()).collect();
        assert_eq!(result["prompt_box"], json!(numbers));
        assert_eq!(result["masks"].as_array().map(Vec::len), Some(1));
    }
    array(&desk, "r.npy", "(3, 64, 64)");
    // As many masks as prompts begin with them.
    let again = desk.run(
        &[
            &args[..4],
            &["--mask-input", "r.npy", "--no-overlay"],
            &args[7..],
        ]
        .concat(),
    );
    assert_eq!(again.code, 0, "{}", again.stderr);
}

#[test]
fn prompts_can_come_from_the_environment() {
    let desk = desk();
    let mut command = desk.command(&["sam", "image0.png"]);
    command.envs([
        ("REFSEG_MODEL", model().as_str()),
        ("REFSEG_POINT", "128,132.5 30,40"),
        ("REFSEG_NOT", "1,1"),
        ("REFSEG_NO_OVERLAY", "1"),
        ("REFSEG_JSON", "1"),
        ("REFSEG_QUIET", "1"),
    ]);
    let ran = Ran::of(command);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let result = &document["results"][0];
    assert_eq!(result["points"], json!([[128.0, 132.5], [30.0, 40.0]]));
    assert_eq!(result["not_points"], json!([[1.0, 1.0]]));
    assert_eq!(result["prompt_box"], Value::Null);
}
