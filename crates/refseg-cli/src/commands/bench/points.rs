//! What PQPP's questions about points cost.

use anyhow::Result;
use refseg::{
    Image,
    chat::Question,
    random::SplitMix64,
    sam4mllm::{
        AnswerCount, Method, NO, ProbePattern, Sam4Mllm, YES, boxes_answer, first_question,
        second_question,
    },
};
use serde::Serialize;

use super::super::{median_ms, timed};

/// The box in which points lie, in thousandths.
const BOX: [i32; 4] = [250, 250, 750, 750];

/// Medians, the picture and the first answer read before.
#[derive(Serialize)]
pub(super) struct Times {
    /// How many there are in the box.
    points: usize,
    /// A question about one point.
    one_ms: f64,
    /// A question about each point, all of them at once.
    each_ms: f64,
    /// One question about all points, which is how PQPP asks.
    together_ms: f64,
}

/// Measures the pair's second questions, if it has any.
pub(super) fn measure(
    pair: &Sam4Mllm,
    image: &Image,
    phrase: &str,
    repeat: usize,
) -> Result<Option<Times>> {
    let settings = pair.settings();
    if settings.method != Method::Pqpp {
        return Ok(None);
    }
    let mllm = pair.mllm();
    let question = first_question(settings.method, phrase, AnswerCount::One);
    let answer = boxes_answer(&[BOX]);
    let talk = mllm.look(image)?.followed_by(&question, &answer)?;
    let points = ProbePattern::Grid5.points(BOX, &mut SplitMix64::new(0));
    let of = |points: &[[i32; 2]]| second_question(settings.wording, BOX, points);
    let each: Vec<String> = points.iter().map(|point| of(&[*point])).collect();
    let together = of(&points);
    let words = [mllm.token(NO)?, mllm.token(YES)?];
    let question = |text, points| Question {
        text,
        max_tokens: points,
        only: &words,
        watched: &words,
    };
    let each: Vec<Question<'_>> = each.iter().map(|text| question(text, 1)).collect();
    let median = |questions: &[Question<'_>]| -> Result<f64> {
        let mut times = Vec::with_capacity(repeat);
        for round in 0..=repeat {
            let (answers, time) = timed(|| talk.ask_many(questions));
            answers?;
            // The first round warms up.
            if round > 0 {
                times.push(time);
            }
        }
        Ok(median_ms(&times))
    };
    Ok(Some(Times {
        points: points.len(),
        one_ms: median(&each[..1])?,
        each_ms: median(&each)?,
        together_ms: median(&[question(&together, points.len())])?,
    }))
}

impl Times {
    /// What was measured, its time, and how it compares with one point.
    pub(super) fn rows(&self) -> [(String, f64, String); 3] {
        let Self {
            points,
            one_ms,
            each_ms,
            together_ms,
        } = *self;
        let ratio = |ms: f64| format!("{:.2} times one", ms / one_ms);
        [
            (
                "a question about one point".to_owned(),
                one_ms,
                String::new(),
            ),
            (
                format!("{points} such questions at once"),
                each_ms,
                ratio(each_ms),
            ),
            (
                format!("one question about {points} points"),
                together_ms,
                ratio(together_ms),
            ),
        ]
    }
}
