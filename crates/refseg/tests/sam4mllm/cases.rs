//! The cases of `fixtures/sam4mllm`, and what holds for any text and box.

use std::{error::Error, path::Path};

use proptest::prelude::*;
use refseg::{
    Image, Mask, Options,
    random::SplitMix64,
    sam::{Label, Prompt, SamPredictor},
    sam4mllm::{
        AnswerCount, Confidence, IMAGE, Method, NO_OBJECT, ProbePattern, PromptedObject,
        Thresholds, Wording, box_to_px, boxes_answer, first_question, is_box, labels_answer,
        objects_answer, point_to_px, quantise_box, quantise_point, read_boxes, read_labels,
        read_objects, sam_prompt, second_question,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

type Outcome = Result<(), Box<dyn Error>>;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) group: String,
    input: Value,
    expected: Value,
}

impl Case {
    /// A member of the input, as what it is.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str) -> T {
        read(&self.input, name, &self.id)
    }

    pub(crate) fn expected<T: DeserializeOwned>(&self, name: &str) -> T {
        read(&self.expected, name, &self.id)
    }

    /// Height and width.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.get("height"), self.get("width"))
    }

    pub(crate) fn count(&self) -> AnswerCount {
        parsed(&self.get::<String>("count_code"))
    }

    fn wording(&self) -> Wording {
        parsed(&self.get::<String>("wording"))
    }

    fn thresholds(&self) -> Thresholds {
        Thresholds {
            no: self.get("t_neg"),
            yes: self.get("t_pos"),
        }
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let path = Path::new("tests/fixtures/sam4mllm/pqpp-cases.json");
    let bytes = std::fs::read(path).expect("a fixture");
    let cases: Cases = serde_json::from_slice(&bytes).expect("cases");
    cases.cases
}

#[test]
fn every_case_agrees() -> Outcome {
    let cases = cases();
    cases.iter().try_for_each(check)?;
    assert_eq!(cases.len(), 112);
    Ok(())
}

fn check(case: &Case) -> Outcome {
    let id = &case.id;
    let text = |found: String| assert_eq!(found, case.expected::<String>("text"), "{id}");
    match case.group.as_str() {
        "quantise_box" => {
            let [x, y, w, h]: [f64; 4] = case.get("bbox_xywh");
            let found = quantise_box([x, y, x + w, y + h], case.size());
            assert_eq!(found, case.expected::<[i32; 4]>("box"), "{id}");
        }
        "quantise_point" => {
            let (pixel, point) = quantise_point(case.get("point"), case.size());
            assert_eq!(pixel, case.expected::<[usize; 2]>("pixel"), "{id}");
            assert_eq!(point, case.expected::<[i32; 2]>("point"), "{id}");
        }
        "dequantise" => {
            let expected: Vec<f64> = case.expected("pixels");
            match case.get::<Vec<i32>>("q")[..] {
                [x, y] => assert_eq!(point_to_px([x, y], case.size())[..], expected, "{id}"),
                [x1, y1, x2, y2] => {
                    let found = box_to_px([x1, y1, x2, y2], case.size());
                    assert_eq!(found[..], expected, "{id}");
                }
                ref other => panic!("{id}: {other:?}"),
            }
        }
        "round1_prompt" => {
            let image = if case.get("first_turn") {
                format!("{IMAGE}\n")
            } else {
                String::new()
            };
            let question =
                first_question(Method::Pqpp, &case.get::<String>("phrase"), case.count());
            text(image + &question);
        }
        "round1_answer" => text(boxes_answer(&case.get::<Vec<[i32; 4]>>("boxes"))),
        "round2_prompt" => {
            let points: Vec<[i32; 2]> = case.get("points");
            text(second_question(case.wording(), case.get("box"), &points));
        }
        "round2_answer" => {
            let labels = labels(case.get("labels"));
            text(labels_answer(&labels));
            let answer = read_labels(&case.expected::<String>("text"));
            assert!(answer.is_clear(), "{id}");
            assert_eq!(answer.said, labels, "{id}");
        }
        "parse_boxes" => {
            let answer = read_boxes(&case.get::<String>("text"));
            assert_eq!(
                answer.said,
                case.expected::<Vec<[i32; 4]>>("matched"),
                "{id}"
            );
            let usable: Vec<[i32; 4]> = answer.said.into_iter().filter(|b| is_box(*b)).collect();
            assert_eq!(usable, case.expected::<Vec<[i32; 4]>>("boxes"), "{id}");
            assert_eq!(
                usable.is_empty(),
                case.expected::<bool>("no_object"),
                "{id}"
            );
        }
        "probe_points" => {
            let pattern: ProbePattern = parsed(&case.get::<String>("kind"));
            let points = pattern.points(case.get("box"), &mut SplitMix64::new(0));
            assert_eq!(points, case.expected::<Vec<[i32; 2]>>("points"), "{id}");
        }
        "filter" => {
            let points: Vec<[i32; 2]> = case.get("points");
            let kept = case
                .thresholds()
                .filter(&points, &confidences(case.get("probs_no_yes")));
            assert_eq!(kept, labelled(&case.expected), "{id}");
        }
        "sam_prompt" => {
            let prompt = sam_prompt(case.get("box"), &labelled(&case.input), case.size());
            check_prompt(&prompt, &case.expected, id);
        }
        "union" => {
            let masks: Vec<Mask> = case
                .get::<Vec<Vec<String>>>("masks")
                .iter()
                .map(|rows| mask(rows))
                .collect();
            let mut union = masks[0].clone();
            for other in &masks[1..] {
                union = union.union(other)?;
            }
            assert_eq!(union, mask(&case.expected::<Vec<String>>("mask")), "{id}");
            assert_eq!(
                union.area() == 0,
                case.expected::<bool>("no_target"),
                "{id}"
            );
        }
        "mask_choice" => {
            let mut masks = three_masks()?;
            masks.scores = case.get("iou_predictions");
            assert_eq!(masks.best(), case.expected::<usize>("index"), "{id}");
        }
        "ppg_text" => {
            let objects = objects(&case.input);
            text(objects_answer(&objects));
            let answer = read_objects(&case.expected::<String>("text"));
            assert!(answer.is_clear(), "{id}");
            assert_eq!(answer.said, objects, "{id}");
        }
        // Unit tests of `chat` have these.
        "yes_no_probability" | "chat" | "chat_training" => {}
        // The whole method is needed for these; see `model.rs`.
        "select_boxes" | "no_object" | "end_to_end" => {}
        other => panic!("{id}: nothing checks the group {other}"),
    }
    Ok(())
}

pub(crate) fn check_prompt(prompt: &Prompt, expected: &Value, id: &str) {
    assert_eq!(prompt.box_px, Some(read(expected, "box_px", id)), "{id}");
    let places: Option<Vec<[f64; 2]>> = read(expected, "points_px", id);
    let found: Vec<[f64; 2]> = prompt.points.iter().map(|point| point.at_px).collect();
    assert_eq!(found, places.unwrap_or_default(), "{id}");
    let expected: Option<Vec<u8>> = read(expected, "point_labels", id);
    let found: Vec<Label> = prompt.points.iter().map(|point| point.label).collect();
    assert_eq!(found, labels(expected.unwrap_or_default()), "{id}");
    assert!(prompt.mask.is_none(), "{id}");
}

/// The masks of some prompt: only Segment Anything makes such a value.
fn three_masks() -> Result<refseg::sam::SamMasks, Box<dyn Error>> {
    let folder = Path::new("tests/fixtures/sam/sam-vit-tiny");
    let predictor = SamPredictor::load(folder, &Options::default())?;
    let scene = predictor.encode(&Image::open(folder.join("image0.png"))?)?;
    let prompt = Prompt {
        box_px: Some([10.0, 10.0, 90.0, 80.0]),
        ..Prompt::default()
    };
    Ok(scene.prompt(&prompt, true)?)
}

#[test]
fn what_says_nothing_is_handed_back() {
    let answer = read_boxes("Here: [1,2,30,40], and [5,6,7 too. No object found.");
    assert_eq!(answer.said, [[1, 2, 30, 40]]);
    assert_eq!(answer.unread, ["Here:", ", and [5,6,7 too."]);
    assert!(answer.no_object && !answer.is_clear());
    assert_eq!(answer.remarks(), ["Here:", ", and [5,6,7 too.", NO_OBJECT]);
    // Silence is no answer.
    assert!(!read_boxes(" \n").is_clear());
    assert_eq!(read_boxes(" \n").remarks(), [""]);
    assert!(read_boxes(" No object found.\n").is_clear());
    assert!(!read_boxes("[1,2,30,40] No object found.").is_clear());
    assert!(!read_boxes("[1,2,30,40] or so").is_clear());
    assert!(!read_boxes("[1,2,30,40][1000,2,30,40]").is_clear());

    let answer = read_labels("YesNo maybe Nope");
    assert_eq!(answer.said, labels(vec![1, 0, 0]));
    assert_eq!(answer.unread, ["maybe", "pe"]);

    // A third number that is neither 0 nor 1 is no label; points need a box.
    let answer = read_objects("(1,2,1)[1,2,30,40](5,6,1)(7,8,2)");
    assert_eq!(answer.said.len(), 1);
    assert_eq!(answer.said[0].points_norm, [([5, 6], Label::Foreground)]);
    assert_eq!(answer.unread, ["(1,2,1)", "(7,8,2)"]);
}

#[test]
fn a_phrase_is_quoted_as_it_is() {
    let phrase = "{count} <image> [1,2,3,4] \"\n女";
    let question = first_question(Method::Ppg, phrase, AnswerCount::ZeroOrMore);
    assert_eq!(
        question,
        format!(
            "Please provide the bounding box coordinate and prompt points of the region this \
             sentence describes (0+):\n\"{phrase}\"."
        )
    );
}

#[test]
fn random_probes_repeat_with_their_seed() {
    let points = |pattern: ProbePattern, seed| {
        pattern.points([100, 200, 300, 900], &mut SplitMix64::new(seed))
    };
    assert_eq!(points(ProbePattern::Random25, 1).len(), 25);
    assert_eq!(points(ProbePattern::Random36, 1).len(), 36);
    assert_eq!(points(ProbePattern::Grid6, 1).len(), 36);
    assert_eq!(
        points(ProbePattern::Grid6, 1)[..2],
        [[116, 258], [150, 258]]
    );
    assert_eq!(
        points(ProbePattern::Random36, 1),
        points(ProbePattern::Random36, 1)
    );
    assert_ne!(
        points(ProbePattern::Random36, 1),
        points(ProbePattern::Random36, 2)
    );
}

#[test]
fn a_point_on_the_edge_counts_to_the_last_pixel() {
    assert_eq!(
        quantise_point([640.0, 480.4], (480, 640)),
        ([639, 479], [998, 997])
    );
    assert_eq!(
        quantise_point([-3.0, f64::NAN], (480, 640)),
        ([0, 0], [0, 0])
    );
}

/// The quotient comes first: a product would come out on the other side of the half.
#[test]
fn boxes_are_divided_before_they_are_multiplied() {
    let found = quantise_box([4.16, 0.0, 33.6, 10.0], (10, 640));
    assert_eq!(found, [7, 0, 53, 999]);
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let error = "grid7".parse::<ProbePattern>().unwrap_err().to_string();
    assert!(
        error.contains("`grid7`") && error.contains("`grid5`"),
        "{error}"
    );
    assert!("2".parse::<AnswerCount>().is_err());
    assert!("Coords".parse::<Wording>().is_err());
}

fn a_box() -> impl Strategy<Value = [i32; 4]> {
    (0..1000, 0..1000, 0..1000, 0..1000).prop_map(|(a, b, c, d)| [a, b, c, d])
}

proptest! {
    #[test]
    fn every_answer_reads_back(
        boxes in prop::collection::vec(a_box(), 0..6),
        points in prop::collection::vec((0..1000, 0..1000, any::<bool>()), 0..6),
    ) {
        let answer = read_boxes(&boxes_answer(&boxes));
        prop_assert!(answer.is_clear());
        prop_assert_eq!(&answer.said, &boxes);
        let label = |on| if on { Label::Foreground } else { Label::Background };
        let points_norm: Vec<_> = points.iter().map(|&(x, y, on)| ([x, y], label(on))).collect();
        let object = |&box_norm: &_| PromptedObject { box_norm, points_norm: points_norm.clone() };
        let objects: Vec<PromptedObject> = boxes.iter().map(object).collect();
        let answer = read_objects(&objects_answer(&objects));
        prop_assert!(answer.is_clear());
        prop_assert_eq!(answer.said, objects);
    }

    #[test]
    fn any_text_can_be_read(text in "[\\[\\](),0-9YesNo bjctfund.é]{0,60}") {
        for answer in [read_boxes(&text).unread, read_objects(&text).unread, read_labels(&text).unread] {
            for piece in answer {
                prop_assert!(text.contains(&piece) && !piece.is_empty());
            }
        }
    }

    #[test]
    fn probes_lie_in_their_box(corners in a_box(), seed in any::<u64>()) {
        let [a, b, c, d] = corners;
        let box_norm = [a.min(c), b.min(d), a.max(c), b.max(d)];
        for pattern in [ProbePattern::Grid5, ProbePattern::Code30, ProbePattern::Random36] {
            for [x, y] in pattern.points(box_norm, &mut SplitMix64::new(seed)) {
                prop_assert!((box_norm[0]..=box_norm[2]).contains(&x));
                prop_assert!((box_norm[1]..=box_norm[3]).contains(&y));
            }
        }
    }

    #[test]
    fn quantised_boxes_are_off_by_half_a_step(
        (x1, y1, x2, y2) in (0.0..640.0, 0.0..480.0, 0.0..640.0, 0.0..480.0),
    ) {
        let back = box_to_px(quantise_box([x1, y1, x2, y2], (480, 640)), (480, 640));
        for (found, (at, side)) in back.iter().zip([(x1, 640.0), (y1, 480.0), (x2, 640.0), (y2, 480.0)]) {
            // The last half step of the picture is cut to 999.
            let step = if at > 0.999 * side { 1e-3 } else { 0.5e-3 };
            prop_assert!((found - at).abs() <= step * side + 1e-9);
        }
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

pub(crate) fn read<T: DeserializeOwned>(object: &Value, name: &str, id: &str) -> T {
    let value = object
        .get(name)
        .cloned()
        .unwrap_or_else(|| panic!("{id}: no `{name}`"));
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{id}: `{name}`: {error}"))
}

fn labels(labels: Vec<u8>) -> Vec<Label> {
    let label = |on| {
        if on == 1 {
            Label::Foreground
        } else {
            Label::Background
        }
    };
    labels.into_iter().map(label).collect()
}

fn confidences(pairs: Vec<[f32; 2]>) -> Vec<Confidence> {
    pairs
        .into_iter()
        .map(|[no, yes]| Confidence { no, yes })
        .collect()
}

/// `points` with their `labels`.
pub(crate) fn labelled(object: &Value) -> Vec<([i32; 2], Label)> {
    let points: Vec<[i32; 2]> = read(object, "points", "points");
    points
        .into_iter()
        .zip(labels(read(object, "labels", "labels")))
        .collect()
}

fn objects(input: &Value) -> Vec<PromptedObject> {
    let objects = input["objects"].as_array().expect("objects");
    let object = |object: &Value| {
        let points: Vec<[i32; 3]> = read(object, "points", "object");
        let point = |&[x, y, on]: &[i32; 3]| ([x, y], labels(vec![on as u8])[0]);
        PromptedObject {
            box_norm: read(object, "box", "object"),
            points_norm: points.iter().map(point).collect(),
        }
    };
    objects.iter().map(object).collect()
}

/// A mask drawn with `0` and `1`.
pub(crate) fn mask(rows: &[String]) -> Mask {
    let bits = rows
        .iter()
        .flat_map(|row| row.chars().map(|c| c == '1'))
        .collect();
    Mask::from_bits(rows.len(), rows[0].len(), bits).expect("a mask")
}
