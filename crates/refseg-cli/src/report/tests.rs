use std::{fs, path::Path, sync::LazyLock};

use refseg::{Image, Mask};
use refseg_data::scenes::{Scene, SceneOptions};

use super::*;

/// What somebody might write who wishes the page ill, and what is merely unusual.
pub(super) const HOSTILE: [&str; 6] = [
    "<script>alert('phrase')</script> & \"quotes\" </li></ul></style>",
    "\" onmouseover=\"alert(1)\" x='{{ title }}' {% raw %}",
    "הכלב השמאלי \u{202e}txet desrever",
    "the 🦒 behind the 🌳, 左边的杯子",
    "&lt;b&gt; is not bold; null\0, escape\u{1b}[2J",
    "<!-- ]]> -->",
];

#[test]
fn pages_are_well_formed() -> Result<()> {
    for systems in [0, 1, 2] {
        check_balance(&sample(systems).to_html()?);
    }
    check_balance(&Report::default().to_html()?);
    Ok(())
}

#[test]
fn text_stays_text() -> Result<()> {
    for text in HOSTILE {
        let mut report = sample(2);
        report.title = text.to_owned();
        report.subtitle = text.to_owned();
        report.notes.push(text.to_owned());
        report.facts.push((text.to_owned(), text.to_owned()));
        for system in &mut report.systems {
            system.name = text.to_owned();
            system.metrics[0].name = text.to_owned();
            system.counts[0].0 = text.to_owned();
            system.by_size[0].label = text.to_owned();
            for case in &mut system.cases {
                case.phrase = text.to_owned();
                case.picture_id = text.to_owned();
                case.expression_id = text.to_owned();
            }
        }
        let page = report.to_html()?;
        check_balance(&page);
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("<style").count(), 1);
        let title = between(&page, "<title>", "</title>");
        assert_eq!(unescaped(title), printed(text));
    }
    Ok(())
}

#[test]
fn phrases_are_shown_letter_by_letter() -> Result<()> {
    let mut report = sample(1);
    report.systems[0].cases.truncate(1);
    let long = "the mug ".repeat(125);
    let unusual = [long.as_str(), ""];
    for phrase in HOSTILE.into_iter().chain(unusual) {
        report.systems[0].cases[0].phrase = phrase.to_owned();
        let page = report.to_html()?;
        let card = between(&page, "<p class=\"phrase\"", "</p>");
        let (attributes, text) = card.split_once('>').unwrap_or_default();
        assert_eq!(unescaped(text), printed(phrase));
        // A text that scrolls can be reached by keyboard.
        assert_eq!(attributes.contains("tabindex"), phrase == long);
        assert!(attributes.contains("dir=\"auto\""));
    }
    Ok(())
}

#[test]
fn same_report_same_bytes() -> Result<()> {
    assert_eq!(sample(2).to_html()?, sample(2).to_html()?);
    Ok(())
}

#[test]
fn nothing_is_fetched_and_the_page_is_small() -> Result<()> {
    let page = sample(1).to_html()?;
    for address in ["http:", "https:", "url(", "@import", "<link", "src=\"/"] {
        assert!(!page.contains(address), "{address}");
    }
    let pictures = page.matches("src=\"").count();
    assert_eq!(pictures, 48);
    assert_eq!(
        page.matches("src=\"data:image/jpeg;base64,").count(),
        pictures
    );
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    Ok(())
}

#[test]
fn two_systems_stand_beside_their_difference() -> Result<()> {
    let alone = sample(1).to_html()?;
    assert!(!alone.contains("B&#8239;−&#8239;A") && !alone.contains("excludes 0"));

    let mut report = sample(2);
    // Rows are matched by name, whatever their order.
    report.systems[1].metrics.reverse();
    let page = report.to_html()?;
    let row = between(&page, "<th scope=\"row\">cIoU ", "</tr>");
    let cells: Vec<String> = row.split("<td").skip(1).map(words).collect();
    assert_eq!(
        cells,
        [
            "61.20 [59.10, 63.40]",
            "63.81 [61.95, 65.60]",
            "+2.61 [+0.84, +4.30] ● excludes 0",
        ]
    );
    let row = between(&page, "<th scope=\"row\">N-acc ", "</tr>");
    assert!(
        words(row).ends_with("−1.20 [−4.05, +1.70] ○ includes 0"),
        "{row}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_counted_is_a_dash() -> Result<()> {
    let mut report = sample(1);
    let system = &mut report.systems[0];
    system.metrics[0].value = None;
    system.metrics[0].interval = None;
    system.metrics[1].value = Some(f64::NAN);
    system.metrics[2].interval = Some((f64::NAN, f64::INFINITY));
    system.by_size[0].miou = None;
    system.histogram = [0; 20];
    system.cases[0].iou = f64::NAN;
    system.cases[0].presence = Some(f32::NAN);
    // Base64 may spell anything.
    system.cases.iter_mut().for_each(|case| case.picture = None);
    let page = report.to_html()?;
    check_balance(&page);
    assert!(!page.contains("NaN") && !page.contains("inf") && !page.contains(">none<"));
    let first = between(&page, "<td class=\"number\">", "</td>");
    assert_eq!(first, "–");
    Ok(())
}

#[test]
fn cases_say_what_was_right() -> Result<()> {
    let mut report = sample(1);
    report.systems[0].cases.truncate(1);
    for (has_target, found, verdict, is_wrong) in [
        (true, true, "found", false),
        (true, false, "not found, but it is there", true),
        (false, true, "found, but nothing is there", true),
        (false, false, "not found, and nothing is there", false),
    ] {
        let case = &mut report.systems[0].cases[0];
        (case.has_target, case.found) = (has_target, found);
        let page = report.to_html()?;
        let answer = between(&page, "<p class=\"answer\">", "</p>");
        assert!(words(answer).ends_with(verdict), "{answer}");
        assert_eq!(answer.contains("class=\"wrong\""), is_wrong);
        assert!(page.contains(&format!(
            "data-target=\"{}\" data-found=\"{}\"",
            if has_target { "yes" } else { "no" },
            if found { "yes" } else { "no" },
        )));
    }
    Ok(())
}

#[test]
fn masks_of_another_size_are_refused() -> Result<()> {
    let image = Image::from_rgb(4, 3, vec![0; 36])?;
    let (right, wrong) = (Mask::empty(3, 4)?, Mask::empty(4, 3)?);
    assert!(case_picture(&image, &right, &right).is_ok());
    let Err(error) = case_picture(&image, &right, &wrong) else {
        panic!("a prediction of another size was drawn");
    };
    assert_eq!(
        error.to_string(),
        "the prediction is a mask of 4x3 (height x width), but its picture is 3x4"
    );
    Ok(())
}

/// Made-up evaluations, to be looked at: in the folder that `REFSEG_SAMPLE_REPORTS`
/// names.
#[test]
fn samples_can_be_looked_at() -> Result<()> {
    let pages = [("one.html", sample(1)), ("two.html", sample(2))];
    for (name, report) in pages {
        let page = report.to_html()?;
        if let Some(folder) = std::env::var_os("REFSEG_SAMPLE_REPORTS") {
            fs::write(Path::new(&folder).join(name), page)?;
        }
    }
    Ok(())
}

fn sample(systems: usize) -> Report {
    let names = ["builtin, 3,150 steps", "MLLMSeg InternVL2.5-2B"];
    let systems = names.iter().take(systems).enumerate();
    let systems: Vec<System> = systems.map(|(i, name)| system(i, name)).collect();
    let difference = |name: &str, value, low, high| DifferenceRow {
        name: name.to_owned(),
        value: Some(value),
        interval: Some((low, high)),
    };
    let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Report {
        title: "Referring expressions in drawn scenes".to_owned(),
        subtitle: "scenes · held-out · each phrase on its own".to_owned(),
        facts: vec![
            fact("Model", "builtin"),
            fact("Model hash", &"5f0c81aa27d3b946".repeat(4)),
            fact("Data hash", &"91be02c7d65a4f38".repeat(4)),
            fact(
                "Protocol",
                "single; rejected phrases count with an empty mask",
            ),
            fact("Version", "refseg 0.1.0"),
            fact(
                "Command",
                "refseg eval scenes --split held-out --count 500 --report report.html",
            ),
        ],
        difference: (systems.len() == 2).then(|| {
            vec![
                difference("cIoU", 2.61, 0.84, 4.30),
                difference("gIoU", 1.93, 0.41, 3.38),
                difference("Prec@0.5", 2.10, -0.12, 4.27),
                difference("N-acc", -1.20, -4.05, 1.70),
                difference("T-acc", 0.35, -0.60, 1.31),
            ]
        }),
        notes: vec![
            "Nothing of the truth reached the model: each phrase was asked on its own.".to_owned(),
        ],
        systems,
    }
}

fn system(index: usize, name: &str) -> System {
    let better = index as f64;
    let row = |name: &str, value: f64, low, high, meaning| MetricRow {
        name: name.to_owned(),
        value: Some(value),
        interval: Some((low, high)),
        meaning,
    };
    let metrics = vec![
        if index == 0 {
            row(
                "cIoU",
                61.20,
                59.10,
                63.40,
                "summed intersection over summed union",
            )
        } else {
            row(
                "cIoU",
                63.81,
                61.95,
                65.60,
                "summed intersection over summed union",
            )
        },
        row(
            "gIoU",
            64.02 + 1.93 * better,
            62.5,
            67.4,
            "mean IoU; 1 for a rightly rejected phrase",
        ),
        row(
            "Prec@0.5",
            71.35 + 2.1 * better,
            69.2,
            75.6,
            "share of expressions with an IoU above one half",
        ),
        row(
            "N-acc",
            58.20 - 1.2 * better,
            53.9,
            62.3,
            "of the phrases without a target, share not found",
        ),
        row(
            "T-acc",
            97.45 + 0.35 * better,
            96.3,
            98.9,
            "of the phrases with a target, share found",
        ),
    ];
    let group = |(label, expressions, score): (&str, u64, f64)| Group {
        label: label.to_owned(),
        expressions,
        miou: Some(score + 2.4 * better),
        ciou: Some(score - 3.1 + 3.0 * better),
    };
    let lengths = [
        ("1–2 words", 310, 71.3),
        ("3–4 words", 1204, 68.0),
        ("5–7 words", 1730, 61.7),
        ("8–12 words", 612, 55.2),
        ("13+ words", 144, 41.9),
    ];
    let sizes = [
        ("no target", 402, 58.2),
        ("under 1 %", 288, 31.4),
        ("1–5 %", 1510, 58.8),
        ("5–20 %", 1402, 72.1),
        ("over 20 %", 398, 80.6),
    ];
    System {
        name: name.to_owned(),
        metrics,
        counts: vec![
            ("pictures".to_owned(), 500),
            ("expressions".to_owned(), 4000),
            ("without a target".to_owned(), 402),
            ("answered “not found”".to_owned(), 326 - 12 * index as u64),
        ],
        histogram: std::array::from_fn(|i| match i {
            0 => 521 - 40 * index as u64,
            19 => 388 + 90 * index as u64,
            _ => 40 + 2 * (i * i) as u64,
        }),
        by_length: lengths.map(group).to_vec(),
        by_size: sizes.map(group).to_vec(),
        cases: CASES[index].clone(),
    }
}

/// The cases of two systems, drawn once for all tests.
static CASES: LazyLock<[Vec<Case>; 2]> =
    LazyLock::new(|| [0, 1].map(|system| cases(system).expect("pictures of cases")));

/// 24 cases of each kind, with predictions that are shifted, or turn up where nothing is.
fn cases(system: usize) -> Result<Vec<Case>> {
    let options = SceneOptions {
        size: 320,
        ..SceneOptions::default()
    };
    let mut cases = Vec::new();
    for index in 0..48 {
        let scene = Scene::draw(&options, index as u64);
        let phrase = &scene.phrases[(index + system) % scene.phrases.len()];
        let side = scene.size as usize;
        let bits = |targets: &[usize]| -> Vec<bool> {
            scene
                .target_mask(targets)
                .iter()
                .map(|&bit| bit == 1)
                .collect()
        };
        let truth = Mask::from_bits(side, side, bits(&phrase.targets))?;
        let is_worst = index < 24;
        let (guess, shift) = match (is_worst, phrase.targets.is_empty()) {
            (true, true) => (vec![index % scene.objects.len()], 0),
            (false, true) => (Vec::new(), 0),
            (true, false) => (phrase.targets.clone(), side * 9 + 14 + index),
            (false, false) => (phrase.targets.clone(), index / 8),
        };
        let found = !guess.is_empty() && index % 7 != 3;
        let mut shifted = if found {
            bits(&guess)
        } else {
            vec![false; side * side]
        };
        shifted.rotate_right(shift);
        let prediction = Mask::from_bits(side, side, shifted)?;
        let (intersection, union) = truth.intersection_union(&prediction)?;
        let image = Image::from_rgb(scene.size, scene.size, scene.pixels.clone())?;
        cases.push(Case {
            kind: if is_worst {
                CaseKind::Worst
            } else {
                CaseKind::Random
            },
            picture_id: format!("held-out-{index:05}"),
            expression_id: format!("{}", 8 * index + system),
            phrase: match (is_worst, HOSTILE.get(index)) {
                (true, Some(hostile)) => (*hostile).to_owned(),
                _ if index == 9 => "the small one that stands beside ".repeat(31),
                _ => phrase.text.clone(),
            },
            iou: if union == 0 {
                1.0
            } else {
                intersection as f64 / union as f64
            },
            found,
            has_target: !phrase.targets.is_empty(),
            presence: Some(if found { 0.93 } else { 0.21 }),
            picture: Some(case_picture(&image, &truth, &prediction)?),
        });
    }
    Ok(cases)
}

/// Panics unless every element is closed in its turn and every attribute is quoted.
pub(super) fn check_balance(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page
        .strip_prefix("<!DOCTYPE html>")
        .expect("a document type");
    while let Some(start) = rest.find('<') {
        let tag = &rest[start + 1..];
        let end = tag_end(tag);
        let (inside, after) = (&tag[..end], &tag[end + 1..]);
        rest = after;
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in the wrong place");
            continue;
        }
        let name = inside.split([' ', '/', '\n']).next().unwrap_or_default();
        assert!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "not a tag: <{inside}>"
        );
        if inside.ends_with('/') || ["meta", "img", "input"].contains(&name) {
            continue;
        }
        open.push(name);
        if ["script", "style"].contains(&name) {
            let close = format!("</{name}>");
            rest = &rest[rest.find(&close).expect("an end")..];
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// Where a tag ends, ">" within quoted values aside.
fn tag_end(tag: &str) -> usize {
    let mut is_quoted = false;
    let end = tag.find(|letter| {
        is_quoted ^= letter == '"';
        assert!(is_quoted || letter != '<', "a tag within a tag: {tag:.80}");
        letter == '>' && !is_quoted
    });
    end.expect("an end of the tag")
}

pub(super) fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = page.split_once(start).expect("the start");
    rest.split_once(end).expect("the end").0
}

/// The text of a fragment that may begin within a tag.
pub(super) fn words(fragment: &str) -> String {
    let texts = fragment
        .split('>')
        .map(|part| part.split('<').next().unwrap_or_default());
    let text: String = texts.skip(1).collect();
    unescaped(&text.replace("&nbsp;", " "))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// The hostile texts' control characters as they are shown.
pub(super) fn printed(text: &str) -> String {
    text.replace('\0', "\\u{0}").replace('\u{1b}', "\\u{1b}")
}

pub(super) fn unescaped(text: &str) -> String {
    let letters = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#x27;", "'"),
        ("&#x2f;", "/"),
        ("&amp;", "&"),
    ];
    letters
        .iter()
        .fold(text.to_owned(), |text, (escape, letter)| {
            text.replace(escape, letter)
        })
}
