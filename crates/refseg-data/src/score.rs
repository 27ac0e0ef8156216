//! From answers and truths to judged cases, and from there to what a report shows.
//!
//! The caller goes through a data set and hands each expression to a [`Scorer`]
//! with its truth; or makes a [`CaseRecord`] itself, from a model's fresh answer.
//! All functions after that are pure.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use refseg::{
    mask::{Mask, MaskError},
    random::SplitMix64,
};

use crate::{
    metrics::{Outcome, Rules, Sums, rec_hit},
    predictions::{Answer, AnswerKey, Answers, Place, PredictionsError},
    runs::Runs,
};

/// An expression of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case<'a> {
    /// Id of its picture.
    pub picture: &'a str,
    /// Its own id, unique in the data set.
    pub expression: &'a str,
    /// Its text.
    pub phrase: &'a str,
}

/// What an expression means, at the size of the picture.
#[derive(Debug, Clone, Copy)]
pub struct TrueMask<'a> {
    /// Its targets; empty if there are none.
    pub mask: &'a Mask,
    /// Pixels that do not count.
    pub ignore: Option<&'a Mask>,
    /// The true box for REC, as [`rec_hit`] wants it.
    pub official_box: Option<[f32; 4]>,
}

/// An expression that has been judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseRecord {
    /// Id of its picture.
    pub picture: String,
    /// Its own id.
    pub expression: String,
    /// Words of the phrase: what white space separates.
    pub words: usize,
    /// Pixels of the picture.
    pub pixels: u64,
    /// What became of it.
    pub outcome: Outcome,
}

impl CaseRecord {
    /// Notes an outcome; `pixels` is the area of the picture.
    pub fn new(case: &Case, pixels: u64, outcome: Outcome) -> Self {
        Self {
            picture: case.picture.to_owned(),
            expression: case.expression.to_owned(),
            words: case.phrase.split_whitespace().count(),
            pixels,
            outcome,
        }
    }
}

/// Judges answers, one expression at a time.
#[derive(Debug)]
pub struct Scorer<'a> {
    answers: &'a Answers,
    keep_going: bool,
    used: HashSet<&'a AnswerKey>,
    scored: Scored,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Scored {
    /// Expressions that were judged, in the order in which they were handed over.
    pub cases: Vec<CaseRecord>,
    /// What was passed over because it was at fault. Expressions that it belongs to
    /// are not among the cases, so scores are those of the rest.
    pub skipped: Vec<PredictionsError>,
}

impl<'a> Scorer<'a> {
    /// Judges these answers. With `keep_going`, faults are listed instead of ending it.
    pub fn new(answers: &'a Answers, keep_going: bool) -> Self {
        Self {
            answers,
            keep_going,
            used: HashSet::new(),
            scored: Scored::default(),
        }
    }

    /// Judges the answer to one expression.
    ///
    /// # Errors
    /// [`PredictionsError`] if there is none, or its mask is damaged or not of the
    /// picture's size; not if the scorer keeps going.
    pub fn score(&mut self, case: &Case, truth: &TrueMask) -> Result<(), PredictionsError> {
        match self.judge(case, truth) {
            Ok(outcome) => {
                let pixels = truth.mask.bits().len() as u64;
                let record = CaseRecord::new(case, pixels, outcome);
                self.scored.cases.push(record);
                Ok(())
            }
            Err(error) => self.allow(error),
        }
    }

    /// Ends it, when every expression has been handed over.
    ///
    /// # Errors
    /// [`PredictionsError::Unknown`] if an answer was for none of them; not if the
    /// scorer keeps going.
    pub fn finish(mut self) -> Result<Scored, PredictionsError> {
        let mut unused: Vec<_> = (self.answers.by_key.iter())
            .filter(|(key, _)| !self.used.contains(key))
            .map(|(key, (place, _))| (place, key))
            .collect();
        unused.sort_by_key(|(place, key)| (place.line, *key));
        for (place, key) in unused {
            self.allow(PredictionsError::Unknown {
                place: place.clone(),
                key: key.clone(),
            })?;
        }
        Ok(self.scored)
    }

    fn judge(&mut self, case: &Case, truth: &TrueMask) -> Result<Outcome, PredictionsError> {
        let found = (self.answers).find(case.picture, case.expression, case.phrase);
        if let Some((key, place, answer)) = found {
            self.used.insert(key);
            return judge(answer, place, key, truth);
        }
        Err(PredictionsError::Missing {
            picture: case.picture.to_owned(),
            expression: case.expression.to_owned(),
            phrase: case.phrase.to_owned(),
        })
    }

    fn allow(&mut self, error: PredictionsError) -> Result<(), PredictionsError> {
        if !self.keep_going {
            return Err(error);
        }
        self.scored.skipped.push(error);
        Ok(())
    }
}

/// Compares an answer with the truth.
fn judge(
    answer: &Answer,
    place: &Place,
    key: &AnswerKey,
    truth: &TrueMask,
) -> Result<Outcome, PredictionsError> {
    let damaged = |source: MaskError| PredictionsError::Mask {
        place: place.clone(),
        key: key.clone(),
        source,
    };
    let expected = [truth.mask.height(), truth.mask.width()];
    let runs = match &answer.rle {
        None => None,
        Some(rle) if rle.size != expected => {
            return Err(PredictionsError::Size {
                place: place.clone(),
                key: key.clone(),
                found: rle.size,
                expected,
            });
        }
        Some(rle) => Some(Runs::decode(rle).map_err(damaged)?),
    };
    let has_pixels = || runs.as_ref().is_some_and(|runs| runs.area() > 0);
    let found = answer.found.unwrap_or_else(has_pixels);
    let outcome = match &runs {
        Some(runs) => Outcome::of_runs(runs, truth.mask, truth.ignore, found),
        None => Mask::empty(expected[0], expected[1])
            .and_then(|empty| Outcome::of_masks(&empty, truth.mask, truth.ignore, found)),
    };
    let mask_box = || runs.as_ref().map_or([0; 4], Runs::official_box);
    let box_hit = truth.official_box.map(|truth| {
        let predicted = answer.rec_box.unwrap_or_else(mask_box);
        rec_hit(predicted, truth)
    });
    Ok(outcome.map_err(damaged)?.with_box_hit(box_hit))
}

/// Sums of each picture, in the order in which pictures first appear.
pub fn by_picture<'a>(cases: impl IntoIterator<Item = &'a CaseRecord>, rules: &Rules) -> Vec<Sums> {
    let mut positions: HashMap<&str, usize> = HashMap::new();
    let mut pictures: Vec<Vec<Outcome>> = Vec::new();
    for case in cases {
        let position = *positions.entry(&case.picture).or_insert(pictures.len());
        if position == pictures.len() {
            pictures.push(Vec::new());
        }
        pictures[position].push(case.outcome);
    }
    pictures.iter().map(|picture| rules.sums(picture)).collect()
}

/// Bins of [`iou_histogram`].
pub const IOU_BINS: usize = 20;

/// How many expressions have which IoU: the bins are equally wide, each has its lower
/// end, and the last has 1, too.
pub fn iou_histogram(cases: &[CaseRecord], rules: &Rules) -> [u64; IOU_BINS] {
    let mut bins = [0; IOU_BINS];
    for case in cases {
        let bin = (rules.iou(&case.outcome) * IOU_BINS as f64) as usize;
        bins[bin.min(IOU_BINS - 1)] += 1;
    }
    bins
}

/// Sums by the number of words in the phrase.
pub fn by_length(cases: &[CaseRecord], rules: &Rules) -> [(&'static str, Sums); 5] {
    let group = |case: &CaseRecord| match case.words {
        0..=2 => 0,
        3..=4 => 1,
        5..=7 => 2,
        8..=12 => 3,
        _ => 4,
    };
    grouped(cases, rules, ["1–2", "3–4", "5–7", "8–12", "13+"], group)
}

/// Sums by the share of the picture that the targets cover. A share of one or five
/// hundredths belongs to the larger group, one of a fifth to the smaller.
pub fn by_target_size(cases: &[CaseRecord], rules: &Rules) -> [(&'static str, Sums); 5] {
    let group = |case: &CaseRecord| match case.outcome.truth {
        0 => 4,
        area if area * 100 < case.pixels => 0,
        area if area * 20 < case.pixels => 1,
        area if area * 5 <= case.pixels => 2,
        _ => 3,
    };
    grouped(
        cases,
        rules,
        ["<1 %", "1–5 %", "5–20 %", ">20 %", "none"],
        group,
    )
}

/// Positions of the cases with the lowest IoU, the worst first; of equal ones, first
/// those with more pixels wrong, then by picture and expression.
pub fn worst(cases: &[CaseRecord], rules: &Rules, count: usize) -> Vec<usize> {
    let badness = |&index: &usize| {
        let case = &cases[index];
        let wrong = case.outcome.union - case.outcome.intersection;
        // IoU within 0 and 1 is ordered as its bits are.
        let iou = rules.iou(&case.outcome).to_bits();
        (iou, Reverse(wrong), &case.picture, &case.expression)
    };
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(badness);
    order.truncate(count);
    order
}

/// Positions of cases taken at random, none twice, from the first to the last.
pub fn at_random(cases: &[CaseRecord], count: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix64::new(seed);
    let mut order: Vec<usize> = (0..cases.len()).collect();
    let count = count.min(order.len());
    for index in 0..count {
        let other = index + random.below(order.len() - index);
        order.swap(index, other);
    }
    order.truncate(count);
    order.sort_unstable();
    order
}

fn grouped<const N: usize>(
    cases: &[CaseRecord],
    rules: &Rules,
    names: [&'static str; N],
    group: impl Fn(&CaseRecord) -> usize,
) -> [(&'static str, Sums); N] {
    std::array::from_fn(|index| {
        let members = cases.iter().filter(|case| group(case) == index);
        (names[index], by_picture(members, rules).into_iter().sum())
    })
}

#[cfg(test)]
mod tests {
    use std::{error::Error, num::NonZeroU64, path::Path};

    use refseg::mask::Rle;

    use super::*;
    use crate::metrics::{Family, Metric};

    const RULES: Rules = Rules {
        family: Family::Gres,
        blank_rejected: true,
    };

    fn outcome(intersection: u64, predicted: u64, truth: u64) -> Outcome {
        Outcome {
            intersection,
            union: predicted + truth - intersection,
            predicted,
            truth,
            found: true,
            box_hit: None,
        }
    }

    fn record(picture: &str, expression: &str, phrase: &str, outcome: Outcome) -> CaseRecord {
        let case = Case {
            picture,
            expression,
            phrase,
        };
        CaseRecord::new(&case, 1000, outcome)
    }

    fn answers(list: Vec<(AnswerKey, Answer)>) -> Answers {
        let placed = list.into_iter().zip(1_u64..).map(|((key, answer), line)| {
            let place = Place {
                path: Path::new("answers.jsonl").into(),
                line: NonZeroU64::new(line),
            };
            (key, (place, answer))
        });
        Answers {
            by_key: placed.collect(),
            skipped: Vec::new(),
        }
    }

    fn id(expression: &str) -> AnswerKey {
        AnswerKey::Expression(expression.to_owned())
    }

    fn runs(size: [usize; 2], lengths: &[u32]) -> Result<Answer, MaskError> {
        Ok(Answer {
            found: None,
            rle: Some(Rle::from_runs(size, lengths)?),
            rec_box: None,
            presence: None,
        })
    }

    const NOTHING: Answer = Answer {
        found: None,
        rle: None,
        rec_box: None,
        presence: None,
    };

    const CASES: [Case<'static>; 3] = [
        Case {
            picture: "7",
            expression: "1",
            phrase: "the left cup",
        },
        Case {
            picture: "7",
            expression: "2",
            phrase: "the cup",
        },
        Case {
            picture: "7",
            expression: "3",
            phrase: "the cup",
        },
    ];

    #[test]
    fn answers_meet_their_truths() -> Result<(), Box<dyn Error>> {
        // The left column of two rows and three columns.
        let mask = Mask::from_bits(2, 3, [true, false, false].repeat(2))?;
        let truth = TrueMask {
            mask: &mask,
            ignore: None,
            official_box: Some([0.0, 0.0, 1.0, 1.0]),
        };
        let by_phrase = AnswerKey::Phrase {
            picture: "7".to_owned(),
            phrase: "the cup".to_owned(),
        };
        let first = Answer {
            rec_box: Some([0, 0, 1, 1]),
            ..runs([2, 3], &[0, 3, 3])?
        };
        let given = vec![(id("1"), first), (by_phrase, runs([2, 3], &[6])?)];
        let given = answers(given);
        let mut scorer = Scorer::new(&given, false);
        for case in &CASES {
            scorer.score(case, &truth)?;
        }
        let scored = scorer.finish()?;
        assert!(scored.skipped.is_empty());
        let empty = Outcome {
            found: false,
            ..outcome(0, 0, 2)
        };
        let expected = [
            outcome(2, 3, 2).with_box_hit(Some(true)),
            empty.with_box_hit(Some(false)),
            empty.with_box_hit(Some(false)),
        ];
        for ((found, case), expected) in scored.cases.iter().zip(&CASES).zip(expected) {
            assert_eq!(found.expression, case.expression);
            assert_eq!((found.outcome, found.pixels), (expected, 6));
        }
        assert_eq!(scored.cases[0].words, 3);
        Ok(())
    }

    #[test]
    fn ignored_pixels_do_not_make_an_answer_empty() -> Result<(), Box<dyn Error>> {
        let (mask, ignore) = (
            Mask::empty(1, 2)?,
            Mask::from_bits(1, 2, vec![true, false])?,
        );
        let truth = TrueMask {
            mask: &mask,
            ignore: Some(&ignore),
            official_box: None,
        };
        let given = answers(vec![(id("1"), runs([1, 2], &[0, 1, 1])?)]);
        let mut scorer = Scorer::new(&given, false);
        scorer.score(&CASES[0], &truth)?;
        assert_eq!(scorer.finish()?.cases[0].outcome, outcome(0, 0, 0));
        Ok(())
    }

    #[test]
    fn what_a_file_says_of_found_holds() -> Result<(), Box<dyn Error>> {
        let mask = Mask::empty(1, 2)?;
        let truth = TrueMask {
            mask: &mask,
            ignore: None,
            official_box: None,
        };
        let full = runs([1, 2], &[0, 2])?;
        let said = |answer: &Answer, found| Answer {
            found,
            ..answer.clone()
        };
        let cases = [
            (said(&full, None), true),
            (said(&full, Some(false)), false),
            (NOTHING, false),
            (said(&NOTHING, Some(true)), true),
        ];
        for (answer, found) in cases {
            let given = answers(vec![(id("1"), answer)]);
            let mut scorer = Scorer::new(&given, false);
            scorer.score(&CASES[0], &truth)?;
            assert_eq!(scorer.finish()?.cases[0].outcome.found, found);
        }
        Ok(())
    }

    #[test]
    fn faults_are_named_or_listed() -> Result<(), Box<dyn Error>> {
        let mask = Mask::empty(2, 3)?;
        let truth = TrueMask {
            mask: &mask,
            ignore: None,
            official_box: None,
        };
        let damaged = Answer {
            rle: Some(Rle {
                size: [2, 3],
                counts: "1".to_owned(),
            }),
            ..NOTHING
        };
        let given = answers(vec![
            (id("1"), runs([3, 2], &[6])?),
            (id("2"), damaged),
            (id("8"), NOTHING),
        ]);
        let expected = [
            "`answers.jsonl`, line 1: the mask of expression `1` is 3x2 (height x width), \
             but its picture is 2x3",
            "`answers.jsonl`, line 2: the mask of expression `2` is damaged",
            "there is no prediction for expression `3`, \"the cup\", of picture `7`",
            "`answers.jsonl`, line 3: expression `8` is not in the data set",
        ];
        let mut strict = Scorer::new(&given, false);
        for (case, expected) in CASES.iter().zip(expected) {
            let error = strict.score(case, &truth).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
        let error = strict.finish().expect_err("one was for nothing");
        assert_eq!(error.to_string(), expected[3]);

        let mut patient = Scorer::new(&given, true);
        for case in &CASES {
            patient.score(case, &truth)?;
        }
        let scored = patient.finish()?;
        assert!(scored.cases.is_empty());
        let skipped: Vec<String> = scored.skipped.iter().map(ToString::to_string).collect();
        assert_eq!(skipped, expected);
        Ok(())
    }

    #[test]
    fn bins_have_their_lower_end() {
        let ious = [(0, 100), (4, 100), (5, 100), (99, 100), (100, 100)];
        let cases: Vec<CaseRecord> = ious
            .iter()
            .map(|&(shared, truth)| record("1", "1", "cup", outcome(shared, shared, truth)))
            .collect();
        let bins = iou_histogram(&cases, &RULES);
        assert_eq!((bins[0], bins[1], bins[19]), (2, 1, 2));
        assert_eq!(bins.iter().sum::<u64>(), 5);
    }

    #[test]
    fn groups_by_length() {
        let lengths = [1, 2, 3, 4, 5, 7, 8, 12, 13, 40];
        let cases: Vec<CaseRecord> = lengths
            .iter()
            .map(|&words| record("1", "1", &"cup ".repeat(words), outcome(1, 1, 2)))
            .collect();
        for (name, sums) in by_length(&cases, &RULES) {
            assert_eq!(sums.expressions, 2, "{name}");
            assert_eq!(RULES.scores(&sums)[Metric::Ciou], Some(50.0));
        }
    }

    /// Of 1,000 pixels.
    #[test]
    fn groups_by_target_size() {
        let areas = [0, 1, 9, 10, 49, 50, 200, 201, 1000];
        let cases: Vec<CaseRecord> = areas
            .iter()
            .map(|&area| record("1", "1", "cup", outcome(0, 0, area)))
            .collect();
        let groups = by_target_size(&cases, &RULES).map(|(name, sums)| (name, sums.expressions));
        assert_eq!(
            groups,
            [
                ("<1 %", 2),
                ("1–5 %", 2),
                ("5–20 %", 2),
                (">20 %", 2),
                ("none", 1)
            ]
        );
    }

    #[test]
    fn the_worst_come_first() {
        let cases = [
            record("1", "a", "cup", outcome(5, 5, 10)),
            record("2", "b", "cup", outcome(0, 0, 10)),
            record("1", "d", "cup", outcome(0, 10, 10)),
            record("1", "c", "cup", outcome(0, 10, 10)),
            record("1", "e", "cup", outcome(10, 10, 10)),
        ];
        assert_eq!(worst(&cases, &RULES, 4), [3, 2, 1, 0]);
        assert_eq!(worst(&cases, &RULES, 24).len(), 5);
    }

    #[test]
    fn random_cases_are_distinct_and_follow_the_seed() {
        let cases = vec![record("1", "a", "cup", outcome(1, 1, 1)); 100];
        let drawn = at_random(&cases, 24, 3);
        assert_eq!(drawn.len(), 24);
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(drawn, at_random(&cases, 24, 3));
        assert_ne!(drawn, at_random(&cases, 24, 4));
        assert_eq!(at_random(&cases[..2], 24, 3), [0, 1]);
        assert!(at_random(&[], 24, 3).is_empty());
    }

    #[test]
    fn pictures_are_collected_from_wherever_they_stand() {
        let cases = [
            record("b", "1", "cup", outcome(1, 1, 2)),
            record("a", "2", "cup", outcome(1, 1, 4)),
            record("b", "3", "cup", outcome(2, 2, 2)),
        ];
        let pictures = by_picture(&cases, &RULES);
        let counts: Vec<_> = pictures
            .iter()
            .map(|sums| (sums.expressions, sums.union))
            .collect();
        assert_eq!(counts, [(2, 4), (1, 4)]);
    }
}
