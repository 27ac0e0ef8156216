use std::{fs, path::Path};

use refseg::{Image, Mask};
use refseg_data::scenes::{Scene, SceneOptions};

use super::*;
use crate::report::{
    case_picture,
    tests::{HOSTILE, between, check_balance, printed, unescaped, words},
};

#[test]
fn pages_are_well_formed() -> Result<()> {
    check_balance(&TrainingReport::default().to_html()?);
    check_balance(&sample(3, 2)?.to_html()?);
    Ok(())
}

#[test]
fn a_run_that_has_not_begun_says_so() -> Result<()> {
    let page = TrainingReport::default().to_html()?;
    assert!(page.contains("Not judged yet.") && page.contains("No step is done yet."));
    assert!(!page.contains("<polyline") && !page.contains("NaN"));
    Ok(())
}

#[test]
fn text_stays_text() -> Result<()> {
    for text in HOSTILE {
        let mut report = sample(2, 1)?;
        report.title = text.to_owned();
        report.subtitle = text.to_owned();
        report.notes.push(text.to_owned());
        report.plan.push((text.to_owned(), text.to_owned()));
        report.groups[0].name = text.to_owned();
        report.groups[0].treatment = text.to_owned();
        report.losses[0].name = text.to_owned();
        for evaluation in &mut report.evaluations {
            evaluation.metrics[0].0 = text.to_owned();
        }
        report.samples[0].phrase = text.to_owned();
        report.samples[0].picture_id = text.to_owned();
        let page = report.to_html()?;
        check_balance(&page);
        assert_eq!(page.matches("<script").count(), 0);
        assert_eq!(page.matches("<style").count(), 1);
        let title = between(&page, "<title>", "</title>");
        assert_eq!(unescaped(title), printed(text));
        let phrase = between(&page, "<p class=\"phrase\" dir=\"auto\">", "</p>");
        assert_eq!(unescaped(phrase), printed(text));
    }
    Ok(())
}

#[test]
fn nothing_is_fetched_and_same_report_same_bytes() -> Result<()> {
    let report = sample(22, 12)?;
    let page = report.to_html()?;
    assert_eq!(page, report.to_html()?);
    for address in ["http:", "https:", "url(", "@import", "<link", "src=\"/"] {
        assert!(!page.contains(address), "{address}");
    }
    // Of 22 evaluations, 8 have room.
    assert!(page.contains("8 of 22 evaluations."));
    assert_eq!(page.matches("<img ").count(), 8 * 12);
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    Ok(())
}

#[test]
fn metrics_have_a_curve_a_last_and_a_best() -> Result<()> {
    let mut report = sample(0, 0)?;
    let metrics = |ciou, n_acc| vec![("cIoU".to_owned(), Some(ciou)), ("N-acc".to_owned(), n_acc)];
    report.evaluations = vec![
        Evaluation {
            step: 1000,
            metrics: metrics(50.0, None),
        },
        Evaluation {
            step: 5000,
            metrics: metrics(40.0, Some(f64::NAN)),
        },
    ];
    let page = report.to_html()?;
    check_balance(&page);
    let corners = between(&page, "<polyline class=\"curve A\" points=\"", "\"");
    assert_eq!(corners, "200.0,78.0 1000.0,92.0");
    let row = between(&page, "<th scope=\"row\">cIoU</th>", "</tr>");
    assert_eq!(cells(row), ["40.0", "50.0", "1,000"]);
    let row = between(&page, "<th scope=\"row\">N-acc</th>", "</tr>");
    assert_eq!(cells(row), ["–", "–", ""]);
    assert!(page.contains("<title>cIoU after step 5,000: 40.0</title>"));
    Ok(())
}

#[test]
fn answers_stand_under_their_step() -> Result<()> {
    let mut report = sample(3, 1)?;
    let sample = &mut report.samples[0];
    sample.has_target = true;
    // The second was not kept.
    sample.answers.remove(1);
    sample.answers[0].found = false;
    sample.answers[0].iou = f64::NAN;
    sample.answers[1].found = true;
    sample.answers[1].iou = 0.756;
    sample.answers[1].picture = b"\x89PNG".to_vec();
    let mut other = sample.clone();
    other.answers[0].step = 400;
    report.samples.push(other);
    let page = report.to_html()?;
    check_balance(&page);
    let row = between(
        &page,
        "<tbody>\n      <tr>\n        <th scope=\"row\">\n          <p",
        "</tr>",
    );
    assert_eq!(cells(row), ["0.00 not found", "–", "0.76 found"]);
    assert_eq!(row.matches("class=\"verdict wrong\"").count(), 1);
    assert!(row.contains("src=\"data:image/png;base64,iVBORw==\""));
    assert!(row.contains("src=\"data:image/jpeg;base64,"));
    Ok(())
}

#[test]
fn parameters_are_added_up() -> Result<()> {
    let page = sample(1, 0)?.to_html()?;
    let total = between(&page, "<tfoot>", "</tfoot>");
    assert_eq!(cells(total), ["", "", "", "2,078,424,012"]);
    let row = between(&page, "<th scope=\"row\">vision tower</th>", "</tr>");
    assert_eq!(cells(row), ["frozen", "–", "341", "304,012,288"]);
    Ok(())
}

/// A made-up run, to be looked at: in the folder that `REFSEG_SAMPLE_REPORTS` names.
#[test]
fn samples_can_be_looked_at() -> Result<()> {
    let page = sample(25, 12)?.to_html()?;
    if let Some(folder) = std::env::var_os("REFSEG_SAMPLE_REPORTS") {
        fs::write(Path::new(&folder).join("training.html"), page)?;
    }
    Ok(())
}

/// The texts of a row's cells, its head aside.
fn cells(row: &str) -> Vec<String> {
    row.split("<td").skip(1).map(words).collect()
}

/// A run of 200 steps for each evaluation.
fn sample(evaluations: u64, samples: usize) -> Result<TrainingReport> {
    let last = 200 * evaluations.max(1);
    let noise = |step: u64, seed: f64| 1.0 + 0.25 * (step as f64 * 12.9898 + seed).sin();
    let falling = |name: &str, high: f64, low: f64| Series {
        name: name.to_owned(),
        points: (1..=last)
            .map(|step| {
                let share = step as f64 / last as f64;
                (
                    step,
                    noise(step, high) * (low + high * (-6.0 * share).exp()),
                )
            })
            .collect(),
        style: SeriesStyle::Noisy,
    };
    let rate = |step: u64| {
        let warm = (step as f64 / 200.0).min(1.0);
        let turn = std::f64::consts::PI * step as f64 / last as f64;
        (step, 1e-3 * warm * (0.51 + 0.49 * turn.cos()))
    };
    let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let group = |name: &str, treatment: &str, rate, tensors, parameters| ParameterGroup {
        name: name.to_owned(),
        treatment: treatment.to_owned(),
        rate,
        tensors,
        parameters,
    };
    let metrics = |step: u64| {
        let share = step as f64 / last as f64;
        let rising =
            |top: f64| Some(top * (1.0 - (-4.0 * share).exp()) * noise(step, top).sqrt().min(1.0));
        vec![
            ("cIoU".to_owned(), rising(70.0)),
            ("N-acc".to_owned(), rising(84.0)),
            ("T-acc".to_owned(), Some(99.0 - 8.0 * share)),
        ]
    };
    Ok(TrainingReport {
        title: "Training on drawn scenes".to_owned(),
        subtitle: "scenes · from scratch · step 5,000 of 5,000".to_owned(),
        notes: vec!["Held-out pictures are judged with averaged weights.".to_owned()],
        plan: vec![
            fact("Steps", "5,000, of which 700 train the vision tower alone"),
            fact("Batch", "16 pictures, 12 phrases each, 4 masks"),
            fact("Learning rate", "1e−3 after 200 steps, then a cosine"),
            fact("Seed", "1"),
            fact("Command", "refseg train --out runs/scenes --steps 5000"),
        ],
        groups: vec![
            group("vision tower", "frozen", None, 341, 304_012_288),
            group(
                "language model",
                "LoRA of rank 64",
                Some(2e-4),
                480,
                1_740_100_000,
            ),
            group("mask decoder", "trained", Some(1e-3), 63, 34_311_724),
        ],
        losses: vec![
            falling("loss", 6.0, 1.1),
            falling("decision", 0.7, 0.06),
            falling("mask", 0.9, 0.2),
            falling("dice", 0.9, 0.3),
        ],
        optimiser: vec![
            Series {
                name: "learning rate".to_owned(),
                points: (1..=last).map(rate).collect(),
                style: SeriesStyle::Exact,
            },
            falling("gradient norm", 2.0, 0.6),
        ],
        evaluations: (1..=evaluations)
            .map(|i| Evaluation {
                step: 200 * i,
                metrics: metrics(200 * i),
            })
            .collect(),
        samples: (0..samples)
            .map(|index| drawn_sample(index, evaluations))
            .collect::<Result<_>>()?,
    })
}

/// A scene whose prediction comes nearer to the truth with every evaluation.
fn drawn_sample(index: usize, evaluations: u64) -> Result<Sample> {
    let options = SceneOptions {
        size: 224,
        ..SceneOptions::default()
    };
    let scene = Scene::draw(&options, index as u64);
    let phrase = &scene.phrases[index % scene.phrases.len()];
    let side = scene.size as usize;
    let bits = scene.target_mask(&phrase.targets);
    let bits: Vec<bool> = bits.iter().map(|&bit| bit == 1).collect();
    let truth = Mask::from_bits(side, side, bits.clone())?;
    let image = Image::from_rgb(scene.size, scene.size, scene.pixels.clone())?;
    let answer = |i: u64| {
        let mut shifted = bits.clone();
        shifted.rotate_right((evaluations - i) as usize * (side + 1));
        let prediction = Mask::from_bits(side, side, shifted)?;
        let (intersection, union) = truth.intersection_union(&prediction)?;
        Ok(Answer {
            step: 200 * i,
            iou: intersection as f64 / union.max(1) as f64,
            found: i > 1,
            picture: case_picture(&image, &truth, &prediction)?,
        })
    };
    Ok(Sample {
        picture_id: format!("held-out-{index:05}"),
        phrase: phrase.text.clone(),
        has_target: !phrase.targets.is_empty(),
        answers: (1..=evaluations).map(answer).collect::<Result<_>>()?,
    })
}
