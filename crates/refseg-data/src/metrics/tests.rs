use refseg::{
    mask::{Mask, MaskError},
    random::SplitMix64,
};

use super::*;
use crate::runs::Runs;

/// Intersection, predicted area and true area, and the decision.
fn outcome(intersection: u64, predicted: u64, truth: u64, found: bool) -> Outcome {
    Outcome {
        intersection,
        union: predicted + truth - intersection,
        predicted,
        truth,
        found,
        box_hit: None,
    }
}

fn rules(family: Family, blank_rejected: bool) -> Rules {
    Rules {
        family,
        blank_rejected,
    }
}

/// Scores of a few pictures.
fn scores(rules: Rules, pictures: &[&[Outcome]]) -> Scores {
    let sums = pictures.iter().map(|picture| rules.sums(picture)).sum();
    rules.scores(&sums)
}

fn assert_near(found: Option<f64>, expected: f64) {
    // Terms are kept to 2⁻⁶¹; what is left is the rounding of a few f64 operations.
    let found = found.expect("there is something to count");
    assert!((found - expected).abs() < 1e-12, "{found} {expected}");
}

fn mask(rows: [&str; 2]) -> Result<Mask, MaskError> {
    let bits = rows.concat().chars().map(|c| c == '#').collect();
    Mask::from_bits(2, rows[0].len(), bits)
}

#[test]
fn masks_are_compared_pixel_by_pixel() -> Result<(), MaskError> {
    let predicted = mask(["##..", "##.."])?;
    let truth = mask([".##.", ".##."])?;
    let ignore = mask([".#.#", "#..."])?;
    let empty = Mask::empty(2, 4)?;
    let cases = [
        (&predicted, &truth, None, (2, 6, 4, 4)),
        // Left of `predicted`: one above, one below; of `truth`: one above, two below.
        (&predicted, &truth, Some(&ignore), (1, 4, 2, 3)),
        (&empty, &truth, None, (0, 4, 0, 4)),
        (&predicted, &empty, None, (0, 4, 4, 0)),
        (&empty, &empty, None, (0, 0, 0, 0)),
        (&empty, &empty, Some(&ignore), (0, 0, 0, 0)),
    ];
    for (predicted, truth, ignore, expected) in cases {
        let runs = Runs::decode(&predicted.to_rle())?;
        for outcome in [
            Outcome::of_masks(predicted, truth, ignore, true)?,
            Outcome::of_runs(&runs, truth, ignore, true)?,
        ] {
            let found = (
                outcome.intersection,
                outcome.union,
                outcome.predicted,
                outcome.truth,
            );
            assert_eq!(found, expected);
        }
    }
    Ok(())
}

#[test]
fn masks_of_other_sizes_are_refused() -> Result<(), MaskError> {
    let (wide, tall) = (Mask::empty(2, 4)?, Mask::empty(4, 2)?);
    let runs = Runs::decode(&tall.to_rle())?;
    for refused in [
        Outcome::of_masks(&tall, &wide, None, true),
        Outcome::of_masks(&wide, &wide, Some(&tall), true),
        Outcome::of_runs(&runs, &wide, None, true),
        Outcome::of_runs(&runs, &tall, Some(&wide), true),
    ] {
        assert!(matches!(refused, Err(MaskError::Mismatch { .. })));
    }
    Ok(())
}

/// Every row of the table in `docs/metrics.md`.
#[test]
fn gres_by_hand() {
    let picture = [
        outcome(0, 50, 0, false),
        outcome(0, 30, 0, true),
        outcome(30, 35, 35, false),
        outcome(10, 15, 15, true),
    ];
    let published = scores(rules(Family::Gres, false), &[&picture]);
    assert_near(published[Metric::Ciou], 100.0 * 40.0 / (90.0 + 1e-10));
    let terms = 1.0 + 0.0 + 30.0 / (40.0 + 1e-8) + 10.0 / (20.0 + 1e-8);
    assert_near(published[Metric::Giou], 100.0 * terms / (4.0 + 1e-5));
    assert_eq!(published[Metric::Miou], Some(56.25));
    assert_eq!(published[Metric::PrecAt0_5], Some(50.0));
    assert_eq!(published[Metric::NAcc], Some(50.0));
    assert_eq!(published[Metric::TAcc], Some(50.0));
    assert_eq!(published[Metric::RecPrecAt0_5], None);

    let blanked = scores(rules(Family::Gres, true), &[&picture]);
    assert_eq!(blanked[Metric::Ciou], Some(100.0 * 10.0 / 85.0));
    assert_eq!(blanked[Metric::Giou], Some(37.5));
    assert_eq!(blanked[Metric::Miou], Some(37.5));
    assert_eq!(blanked[Metric::PrecAt0_5], Some(25.0));
    assert_eq!(blanked[Metric::NAcc], Some(50.0));
    assert_eq!(blanked[Metric::TAcc], Some(50.0));
}

/// Found, but without a pixel, where there is no target: the published rules look at the
/// decision, a user at the mask.
#[test]
fn gres_found_nothing_where_there_is_nothing() {
    let picture = [outcome(0, 0, 0, true)];
    let published = scores(rules(Family::Gres, false), &[&picture]);
    let blanked = scores(rules(Family::Gres, true), &[&picture]);
    assert_eq!(published[Metric::Giou], Some(0.0));
    assert_eq!(blanked[Metric::Giou], Some(100.0));
    for scores in [published, blanked] {
        assert_eq!(scores[Metric::Ciou], None);
        assert_eq!(scores[Metric::NAcc], Some(0.0));
        assert_eq!(scores[Metric::TAcc], None);
    }
}

#[test]
fn res_averages_over_pictures() {
    let first = [outcome(3, 3, 4, true), outcome(0, 0, 0, true)];
    let second = [outcome(1, 1, 10, false)];
    let published = scores(rules(Family::Res, false), &[&first, &second]);
    assert_near(published[Metric::Ciou], 100.0 * 4.0 / (14.0 + 1e-10));
    let first_mean = (3.0 / (4.0 + 1e-5) + 1.0) / 2.0;
    let second_mean = 1.0 / (10.0 + 1e-5);
    let pictures = 2.0 + 1e-5;
    assert_near(
        published[Metric::Giou],
        100.0 * (first_mean + second_mean) / pictures,
    );
    assert_near(published[Metric::Miou], 100.0 * (0.75 + 1.0 + 0.1) / 3.0);

    let blanked = scores(rules(Family::Res, true), &[&first, &second]);
    assert_eq!(blanked[Metric::Giou], Some(100.0 * (0.875 + 0.0) / 2.0));
    assert_eq!(blanked[Metric::Ciou], Some(100.0 * 3.0 / 14.0));
}

#[test]
fn reason_averages_over_pictures() {
    let first = [outcome(2, 3, 3, true)];
    let second = [outcome(0, 0, 0, true)];
    let published = scores(rules(Family::Reason, false), &[&first, &second]);
    assert_near(
        published[Metric::Giou],
        100.0 * (2.0 / (4.0 + 1e-5) + 1.0) / 2.0,
    );
    assert_eq!(published[Metric::Ciou], Some(50.0));
    // By the published rules, a rejected mask counts all the same.
    let rejected = [outcome(2, 3, 3, false)];
    let published = scores(rules(Family::Reason, false), &[&rejected]);
    assert_eq!(published[Metric::Ciou], Some(50.0));
    let blanked = scores(rules(Family::Reason, true), &[&rejected]);
    assert_eq!(blanked[Metric::Ciou], Some(0.0));
}

/// Sums and cIoU as the official evaluation printed them; it divides in f32.
#[test]
fn ciou_matches_reference() {
    let printed = [
        (Family::Res, 29382, 831_701, 3.532_759_845_256_805_4),
        (Family::Res, 21207, 757_758, 2.798_650_786_280_632),
        (Family::Gres, 25312, 349_544, 7.241_434_603_929_52),
        (Family::Gres, 32155, 549_875, 5.847_692_489_624_023),
    ];
    for (family, intersection, union, expected) in printed {
        let outcome = outcome(intersection, union, intersection, true);
        let scores = scores(rules(family, false), &[&[outcome]]);
        let found = scores[Metric::Ciou].expect("there are pixels");
        // Relative rounding of f32 is 6e-8.
        assert!((found / expected - 1.0).abs() < 1e-7, "{found} {expected}");
    }
}

#[test]
fn precision_is_strictly_above() {
    let tenths = |tenths: u64| [outcome(tenths, tenths, 10, true)];
    let rules = rules(Family::Res, true);
    let all: Vec<_> = (5..=10).map(tenths).collect();
    let pictures: Vec<&[Outcome]> = all.iter().map(|one| one.as_slice()).collect();
    let scores = scores(rules, &pictures);
    let expected = [
        (Metric::PrecAt0_5, 5.0),
        (Metric::PrecAt0_6, 4.0),
        (Metric::PrecAt0_7, 3.0),
        (Metric::PrecAt0_8, 2.0),
        (Metric::PrecAt0_9, 1.0),
    ];
    for (metric, count) in expected {
        assert_eq!(scores[metric], Some(100.0 * count / 6.0), "{metric:?}");
    }
}

#[test]
fn boxes_hit_strictly_above_one_half() {
    let hits = [
        ([0, 0, 9, 9], [0.0, 0.0, 9.0, 9.0], true),
        // 50 of 100, and a thirty-second of a pixel more.
        ([0, 0, 10, 10], [0.0, 0.0, 10.0, 5.0], false),
        ([0, 0, 10, 10], [0.0, 0.0, 10.0, 5.031_25], true),
        // An empty mask, and beside it a box without area.
        ([0, 0, 0, 0], [0.0, 0.0, 2.0, 2.0], false),
        ([0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0], false),
        // Neither axis overlaps: the product of two negative sides would be positive.
        ([0, 0, 4, 4], [9.0, 9.0, 13.0, 13.0], false),
        ([0, 0, 4, 4], [0.0, 9.0, 4.0, 13.0], false),
        // A pixel wide has no width: indices get no one added.
        ([3, 0, 3, 9], [3.0, 0.0, 4.0, 10.0], false),
    ];
    for (predicted, truth, hit) in hits {
        assert_eq!(rec_hit(predicted, truth), hit, "{predicted:?} {truth:?}");
    }
}

/// Numbers of f16 from 8 to 16 are 2⁻⁷ apart, so a height of 10.003 becomes 10, and a
/// box that would hit by a hair does not.
#[test]
fn boxes_are_those_of_f16() {
    assert!(rec_hit([0, 0, 20, 20], [0.0, 0.0, 20.0, 10.003]));
    assert!(!rec_hit([0, 0, 20, 20], [0.0, 0.0, 20.0, 10.0]));
}

#[test]
fn boxes_are_counted_where_there_are_any() {
    let hit = outcome(1, 1, 1, true).with_box_hit(Some(true));
    let rejected = outcome(1, 1, 1, false).with_box_hit(Some(true));
    let without = outcome(1, 1, 1, true);
    let picture = [hit, rejected, without];
    let published = scores(rules(Family::Res, false), &[&picture]);
    assert_eq!(published[Metric::RecPrecAt0_5], Some(100.0));
    let blanked = scores(rules(Family::Res, true), &[&picture]);
    assert_eq!(blanked[Metric::RecPrecAt0_5], Some(50.0));
}

#[test]
fn nothing_to_count_is_no_number() {
    let scores = scores(rules(Family::Gres, true), &[&[]]);
    assert!(scores.iter().all(|(_, score)| score.is_none()));
}

#[test]
fn names_of_metrics() -> Result<(), serde_json::Error> {
    for (position, metric) in Metric::ALL.into_iter().enumerate() {
        assert_eq!(metric as usize, position, "{metric:?}");
    }
    let scores = scores(rules(Family::Gres, true), &[&[outcome(1, 1, 2, true)]]);
    assert_eq!(
        serde_json::to_string(&scores)?,
        "{\"cIoU\":50.0,\"gIoU\":50.0,\"mIoU\":50.0,\"prec_at_0_5\":0.0,\"prec_at_0_6\":0.0,\
         \"prec_at_0_7\":0.0,\"prec_at_0_8\":0.0,\"prec_at_0_9\":0.0,\"rec_prec_at_0_5\":null,\
         \"N_acc\":null,\"T_acc\":100.0}"
    );
    Ok(())
}

fn random_outcome(random: &mut SplitMix64) -> Outcome {
    let truth = random.below(4) * random.below(5000);
    let predicted = random.below(4) * random.below(5000);
    let intersection = random.below(truth.min(predicted) + 1);
    outcome(
        intersection as u64,
        predicted as u64,
        truth as u64,
        random.below(3) > 0,
    )
}

fn random_pictures(random: &mut SplitMix64, count: usize) -> Vec<Vec<Outcome>> {
    let mut picture = || {
        let expressions = 1 + random.below(6);
        (0..expressions).map(|_| random_outcome(random)).collect()
    };
    (0..count).map(|_| picture()).collect()
}

fn shuffle<T>(items: &mut [T], random: &mut SplitMix64) {
    for index in (1..items.len()).rev() {
        items.swap(index, random.below(index + 1));
    }
}

#[test]
fn order_and_grouping_change_no_bit() {
    let mut random = SplitMix64::new(5);
    for family in [Family::Res, Family::Gres, Family::Reason] {
        for blank_rejected in [false, true] {
            let rules = rules(family, blank_rejected);
            let mut pictures = random_pictures(&mut random, 200);
            let sums = |pictures: &[Vec<Outcome>]| -> Sums {
                pictures.iter().map(|picture| rules.sums(picture)).sum()
            };
            let whole = rules.scores(&sums(&pictures));
            for _ in 0..20 {
                shuffle(&mut pictures, &mut random);
                for picture in &mut pictures {
                    shuffle(picture, &mut random);
                }
                let (left, right) = pictures.split_at(random.below(pictures.len()));
                let mut halves = sums(right);
                halves.merge(&sums(left));
                let again = rules.scores(&halves);
                for (metric, score) in whole.iter() {
                    let bits = |score: Option<f64>| score.map(f64::to_bits);
                    assert_eq!(bits(*score), bits(again[metric]), "{metric:?}");
                }
            }
        }
    }
}

#[test]
fn scores_lie_within_bounds() {
    let mut random = SplitMix64::new(6);
    for picture in random_pictures(&mut random, 300) {
        for blank_rejected in [false, true] {
            let rules = rules(Family::Gres, blank_rejected);
            let scores = rules.scores(&rules.sums(&picture));
            let values = scores.iter().filter_map(|(_, score)| *score);
            assert!(
                values
                    .into_iter()
                    .all(|score| (0.0..=100.0).contains(&score))
            );
        }
    }
}

#[test]
fn a_tally_keeps_kinds_apart() {
    let mut tally = Tally::default();
    tally.add("attribute", &outcome(30, 30, 40, true));
    tally.add("attribute", &outcome(5, 5, 10, false));
    let mut other = Tally::default();
    other.add("none", &outcome(0, 8, 0, false));
    other.add("none", &outcome(0, 50, 0, true));
    tally.merge(&other);
    let kinds: Vec<&str> = tally.kinds().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["attribute", "none"]);
    let all = Tally::scores(&tally.all());
    assert_eq!(all[Metric::Ciou], Some(30.0));
    assert_eq!(all[Metric::Giou], Some(43.75));
    assert_eq!(all[Metric::PrecAt0_5], Some(50.0));
    assert_eq!(all[Metric::NAcc], Some(50.0));
    assert_eq!(all[Metric::TAcc], Some(50.0));
}

/// Sums of pictures with one expression each, whose masks are right or wrong.
fn right_or_wrong(right: impl IntoIterator<Item = bool>) -> Vec<Sums> {
    let picture = |right| outcome(u64::from(right), 1, 1, true);
    let rules = rules(Family::Gres, true);
    right
        .into_iter()
        .map(|right| rules.sums(&[picture(right)]))
        .collect()
}

#[test]
fn an_interval_is_as_wide_as_the_binomial() {
    let rules = rules(Family::Gres, true);
    let pictures = right_or_wrong((0..100).map(|i| i % 2 == 0));
    let intervals = Bootstrap::default().intervals(&rules, &pictures);
    let interval = intervals[Metric::Miou].expect("there are expressions");
    // One half of a hundred: the deviation is 5, and 95 % lie within 1.96 of it. Of
    // 1,000 rounds the ends scatter by about 0.4.
    assert!((interval.low - 40.2).abs() < 1.5, "{interval:?}");
    assert!((interval.high - 59.8).abs() < 1.5, "{interval:?}");
    assert_eq!(intervals[Metric::NAcc], None);
}

/// Of expressions one by one, the interval would be some 14 wide.
#[test]
fn expressions_of_a_picture_are_drawn_together() {
    let rules = rules(Family::Gres, true);
    let right = rules.sums(&[outcome(1, 1, 1, true); 100]);
    let wrong = rules.sums(&[outcome(0, 1, 1, true); 100]);
    let intervals = Bootstrap::default().intervals(&rules, &[right, wrong]);
    let expected = Interval {
        low: 0.0,
        high: 100.0,
    };
    assert_eq!(intervals[Metric::Miou], Some(expected));
}

#[test]
fn a_seed_decides_the_interval() {
    let rules = rules(Family::Gres, true);
    let mut random = SplitMix64::new(7);
    let pictures: Vec<Sums> = random_pictures(&mut random, 30)
        .iter()
        .map(|picture| rules.sums(picture))
        .collect();
    let interval = |seed| {
        let bootstrap = Bootstrap { rounds: 200, seed };
        bootstrap.intervals(&rules, &pictures)[Metric::Ciou]
    };
    assert_eq!(interval(1), interval(1));
    assert_ne!(interval(1), interval(2));
    let whole = rules.scores(&pictures.iter().copied().sum())[Metric::Ciou];
    let (whole, interval) = whole.zip(interval(1)).expect("there are pixels");
    assert!(interval.low < whole && whole < interval.high);
}

#[test]
fn nothing_has_no_interval() {
    let intervals = Bootstrap::default().intervals(&rules(Family::Res, true), &[]);
    assert!(intervals.iter().all(|(_, interval)| interval.is_none()));
}

#[test]
fn a_system_does_not_differ_from_itself() -> Result<(), CompareError> {
    let rules = rules(Family::Gres, true);
    let system = right_or_wrong([true, false, true]);
    let compared = Bootstrap::default().compare(&rules, &system, &system)?;
    let expected = Difference {
        difference: 0.0,
        interval: Interval {
            low: 0.0,
            high: 0.0,
        },
        other_sign: 1.0,
        p_value: 1.0,
    };
    assert_eq!(compared[Metric::Miou], Some(expected));
    assert_eq!(compared[Metric::NAcc], None);
    Ok(())
}

/// The first is right wherever the second is, and elsewhere, too. Resampled together, no
/// round turns the sign; one that draws none of the twelve pictures in which they differ
/// has a chance of 6e-7.
#[test]
fn rounds_are_paired() -> Result<(), CompareError> {
    let rules = rules(Family::Gres, true);
    let first = right_or_wrong((0..40).map(|i| i < 28));
    let second = right_or_wrong((0..40).map(|i| i < 16));
    let bootstrap = Bootstrap::default();
    let compared = bootstrap.compare(&rules, &first, &second)?[Metric::Miou];
    let compared = compared.expect("there are expressions");
    assert_eq!(compared.difference, 30.0);
    assert_eq!(compared.other_sign, 0.0);
    assert_eq!(compared.p_value, 2.0 / 1001.0);
    assert!(compared.interval.low > 0.0);
    let turned = bootstrap.compare(&rules, &second, &first)?[Metric::Miou];
    assert_eq!(turned.map(|turned| turned.difference), Some(-30.0));
    assert_eq!(turned.map(|turned| turned.p_value), Some(2.0 / 1001.0));
    Ok(())
}

#[test]
fn other_pictures_cannot_be_compared() {
    let rules = rules(Family::Gres, true);
    let compare = |first: &[Sums], second: &[Sums]| {
        let compared = Bootstrap::default().compare(&rules, first, second);
        compared.expect_err("they differ").to_string()
    };
    let (two, three) = (right_or_wrong([true; 2]), right_or_wrong([true; 3]));
    assert_eq!(
        compare(&two, &three),
        "systems can be compared on the same pictures only: one has 2, the other 3"
    );
    let mut fuller = two.clone();
    fuller[1].merge(&two[0]);
    assert_eq!(
        compare(&two, &fuller),
        "systems can be compared on the same expressions only: of picture 2, counted from 1, \
         one has 1, the other 2"
    );
}
