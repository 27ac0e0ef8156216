//! What reads and answers: a language model with the way it is talked with.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::{
    Answer, ChatError, Conversation, MAX_QUESTION_BYTES, Question,
    template::{ChatTemplate, Place},
};
use crate::language::{KeyValues, LanguageModel, packed_mask};

/// Tokens that are read in one pass: bounds the scores of attention, which grow with
/// their product with all tokens before.
const TOKENS_AT_ONCE: usize = 512;

/// A language model that can be talked with.
#[derive(Debug)]
pub(super) struct Speaker {
    pub(super) name: String,
    pub(super) language: LanguageModel,
    pub(super) template: ChatTemplate,
    /// Ids that end an answer.
    pub(super) stops: Vec<u32>,
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
    /// Longest conversation in tokens.
    pub(super) limit: usize,
}

/// What was said so far.
#[derive(Debug, Clone)]
pub(super) struct Talk {
    speaker: Arc<Speaker>,
    seen: KeyValues,
    place: Place,
}

impl Speaker {
    /// Begins a conversation about a picture.
    ///
    /// # Shapes
    /// - `picture`: `(1, M, D)`, its tokens
    pub(super) fn look(self: &Arc<Self>, picture: Tensor<3>) -> Result<Talk, ChatError> {
        let opening = self.language.embed(&self.template.opening()?);
        let x = Tensor::cat(vec![opening, picture], 1);
        let [_, length, _] = x.dims();
        self.check_length(length)?;
        Ok(Talk {
            seen: self.read_on(x, KeyValues::default())?,
            speaker: Arc::clone(self),
            place: Place::First,
        })
    }

    /// Reads what follows `seen`: everything seen then.
    ///
    /// # Shapes
    /// - `x`: `(1, L, D)`, `L` at least 1
    fn read_on(&self, x: Tensor<3>, seen: KeyValues) -> Result<KeyValues, ChatError> {
        let ([_, rows, _], start) = (x.dims(), seen.length());
        let positions: Vec<usize> = (start..start + rows).collect();
        let (states, seen) = self.read(x, &positions, start, &vec![0; rows], seen);
        // A network that computes nonsense says so before it is asked.
        self.values(states.narrow(0, rows - 1, 1))?;
        Ok(seen)
    }

    /// Reads tokens of independent continuations of the first `start` tokens
    /// that were `seen`: their states, `(L, D)`, and everything seen then.
    ///
    /// # Shapes
    /// - `x`: `(1, L, D)`, the last `L` of all continuations' tokens
    /// - `positions`: `L`, where each token stands in its own continuation
    /// - `owners`: whose each token behind the first `start` is
    fn read(
        &self,
        x: Tensor<3>,
        positions: &[usize],
        start: usize,
        owners: &[usize],
        seen: KeyValues,
    ) -> (Tensor<2>, KeyValues) {
        let device = x.device();
        let mut first = owners.len() - positions.len();
        let (mut seen, mut states) = (seen, Vec::new());
        let parts = x.split(TOKENS_AT_ONCE, 1).into_iter();
        for (part, positions) in parts.zip(positions.chunks(TOKENS_AT_ONCE)) {
            let rows = first..first + positions.len();
            first = rows.end;
            let mask = packed_mask(start, &owners[..rows.end], rows, &device);
            let (hidden, all) = self.language.extend(part, positions, &mask, seen);
            states.push(hidden.squeeze_dim::<2>(0));
            seen = all;
        }
        (Tensor::cat(states, 0), seen)
    }

    fn values(&self, tensor: Tensor<2>) -> Result<Vec<f32>, ChatError> {
        let not_numbers = || ChatError::NotANumber {
            model: self.name.clone(),
        };
        let values: Vec<f32> = tensor
            .into_data()
            .try_into_vec()
            .map_err(|_| not_numbers())?;
        if values.iter().any(|value| value.is_nan()) {
            return Err(not_numbers());
        }
        Ok(values)
    }

    fn check_length(&self, found: usize) -> Result<(), ChatError> {
        if found < self.limit {
            return Ok(());
        }
        Err(ChatError::TooLong {
            model: self.name.clone(),
            found,
            limit: self.limit,
        })
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), ChatError> {
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            None => Ok(()),
            Some(&id) => Err(ChatError::NoSuchToken {
                model: self.name.clone(),
                id,
                vocabulary: self.vocabulary,
            }),
        }
    }
}

impl Conversation for Talk {
    fn ask_many(&self, questions: &[Question<'_>]) -> Result<Vec<Answer>, ChatError> {
        let prompts = questions
            .iter()
            .map(|question| self.prompt(question))
            .collect::<Result<Vec<_>, _>>()?;
        let mut answers = Vec::with_capacity(questions.len());
        while answers.len() < questions.len() {
            let first = answers.len();
            let count = how_many_fit(&prompts[first..]);
            let group = first..first + count;
            answers.extend(self.answer(&questions[group.clone()], &prompts[group])?);
        }
        Ok(answers)
    }

    fn followed_by(
        &self,
        question: &str,
        answer: &str,
    ) -> Result<Box<dyn Conversation>, ChatError> {
        let Speaker {
            template, language, ..
        } = &*self.speaker;
        check_text(answer)?;
        let mut ids = self.prompt(&Question::new(question))?;
        ids.extend(template.answer(answer)?);
        self.speaker.check_length(self.seen.length() + ids.len())?;
        Ok(Box::new(Self {
            seen: self
                .speaker
                .read_on(language.embed(&ids), self.seen.clone())?,
            speaker: Arc::clone(&self.speaker),
            place: Place::Later,
        }))
    }

    fn length(&self) -> usize {
        self.seen.length()
    }

    fn bytes(&self) -> usize {
        self.seen.bytes()
    }
}

impl Talk {
    /// The ids of a question, checked.
    fn prompt(&self, question: &Question<'_>) -> Result<Vec<u32>, ChatError> {
        let speaker = &self.speaker;
        if question.text.trim().is_empty() {
            return Err(ChatError::EmptyQuestion);
        }
        check_text(question.text)?;
        speaker.check_ids(question.only)?;
        speaker.check_ids(question.watched)?;
        let ids = speaker.template.question(question.text, self.place)?;
        speaker.check_length(self.seen.length() + ids.len())?;
        Ok(ids)
    }

    /// Answers questions side by side: each sees what was said so far and
    /// itself, and all of them take part in every pass until they are done.
    fn answer(
        &self,
        questions: &[Question<'_>],
        prompts: &[Vec<u32>],
    ) -> Result<Vec<Answer>, ChatError> {
        let start = self.seen.length();
        let mut pack = Pack {
            talk: self,
            seen: self.seen.clone(),
            owners: Vec::new(),
            lengths: vec![start; questions.len()],
        };
        let mut drafts: Vec<Draft<'_>> = questions.iter().map(Draft::new).collect();
        let mut asked: Vec<(usize, Vec<u32>)> = prompts.iter().cloned().enumerate().collect();
        asked.retain(|(owner, _)| drafts[*owner].goes_on(pack.room(*owner)));
        while !asked.is_empty() {
            let logits = pack.read(&asked)?;
            for ((owner, ids), logits) in asked
                .iter_mut()
                .zip(logits.chunks_exact(self.speaker.vocabulary))
            {
                *ids = vec![drafts[*owner].choose(logits, &self.speaker.stops)];
            }
            asked.retain(|(owner, _)| drafts[*owner].goes_on(pack.room(*owner)));
        }
        drafts
            .into_iter()
            .map(|draft| draft.finish(&self.speaker.template))
            .collect()
    }
}

/// Several continuations of one conversation, their tokens in one row.
struct Pack<'a> {
    talk: &'a Talk,
    /// What was said before, then the tokens of all continuations as they came.
    seen: KeyValues,
    /// Whose each of those tokens is.
    owners: Vec<usize>,
    /// How long each continuation is, what was said before included.
    lengths: Vec<usize>,
}

impl Pack<'_> {
    /// Reads the next tokens of some continuations: the logits behind each, one after the other.
    fn read(&mut self, next: &[(usize, Vec<u32>)]) -> Result<Vec<f32>, ChatError> {
        let speaker = &self.talk.speaker;
        let (mut ids, mut positions, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, tokens) in next {
            ids.extend_from_slice(tokens);
            self.owners.extend(tokens.iter().map(|_| *owner));
            let length = &mut self.lengths[*owner];
            positions.extend(*length..*length + tokens.len());
            *length += tokens.len();
            ends.push(ids.len() as i64 - 1);
        }
        let x = speaker.language.embed(&ids);
        let ends = Tensor::from_data(TensorData::new(ends, [next.len()]), &x.device());
        let (start, seen) = (self.talk.seen.length(), std::mem::take(&mut self.seen));
        let (states, seen) = speaker.read(x, &positions, start, &self.owners, seen);
        self.seen = seen;
        speaker.values(speaker.language.logits(states.select(0, ends)))
    }

    /// How many more tokens a continuation may have.
    fn room(&self, owner: usize) -> usize {
        self.talk.speaker.limit.saturating_sub(self.lengths[owner])
    }
}

/// An answer that is being made.
struct Draft<'a> {
    question: &'a Question<'a>,
    ids: Vec<u32>,
    log_probabilities: Vec<f32>,
    watched: Vec<Vec<f32>>,
    ended: bool,
}

impl<'a> Draft<'a> {
    fn new(question: &'a Question<'a>) -> Self {
        Self {
            question,
            ids: Vec::new(),
            log_probabilities: Vec::new(),
            watched: Vec::new(),
            ended: false,
        }
    }

    fn goes_on(&self, room: usize) -> bool {
        !self.ended && self.ids.len() < self.question.max_tokens && room > 0
    }

    /// Takes the likeliest token that may be chosen; the first of equals, as the reference.
    fn choose(&mut self, logits: &[f32], stops: &[u32]) -> u32 {
        let everything = 0..logits.len() as u32;
        let chosen = match self.question.only {
            [] => likeliest(everything, logits),
            only => likeliest(only.iter().copied(), logits),
        };
        if stops.contains(&chosen) {
            self.ended = true;
            return chosen;
        }
        let log_sum = log_sum_exp(logits);
        let log_probability = |id: u32| f64::from(logits[id as usize]) - log_sum;
        self.ids.push(chosen);
        self.log_probabilities.push(log_probability(chosen) as f32);
        let watched = self.question.watched.iter();
        let watched = watched.map(|&id| log_probability(id).exp() as f32);
        self.watched.push(watched.collect());
        chosen
    }

    fn finish(self, template: &ChatTemplate) -> Result<Answer, ChatError> {
        Ok(Answer {
            text: template.tokenizer.decode(&self.ids)?,
            ids: self.ids,
            log_probabilities: self.log_probabilities,
            watched: self.watched,
            ended: self.ended,
        })
    }
}

/// Of some ids the one with the largest logit; the first of equals, 0 of none.
fn likeliest(ids: impl Iterator<Item = u32>, logits: &[f32]) -> u32 {
    let logit = |id: u32| logits[id as usize];
    ids.reduce(|best, id| if logit(id) > logit(best) { id } else { best })
        .unwrap_or(0)
}

/// `ln Σ eˣ`, in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - most).exp()).sum();
    most + sum.ln()
}

fn check_text(text: &str) -> Result<(), ChatError> {
    if let Some(at) = text.find('\0') {
        return Err(ChatError::Nul { at });
    }
    if text.len() > MAX_QUESTION_BYTES {
        return Err(ChatError::LongQuestion { bytes: text.len() });
    }
    Ok(())
}

/// How many prompts to read in one pass: one at least.
fn how_many_fit(prompts: &[Vec<u32>]) -> usize {
    let mut tokens = 0;
    let fits = |prompt: &&Vec<u32>| {
        tokens += prompt.len();
        tokens <= TOKENS_AT_ONCE
    };
    prompts.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Fixture: probabilities of `No` and `Yes`, computed apart from this project in f64.
    #[test]
    fn watched_tokens_have_their_share_of_the_whole_vocabulary() {
        let cases = include_str!("../../tests/fixtures/sam4mllm/pqpp-cases.json");
        let cases: Value = serde_json::from_str(cases).expect("JSON");
        let cases = cases["cases"].as_array().expect("cases");
        let mut met = 0;
        for case in cases
            .iter()
            .filter(|case| case["group"] == "yes_no_probability")
        {
            let id = |name: &str| case["input"][name].as_u64().expect("an id") as u32;
            let logits = serde_json::from_value(case["input"]["logits"].clone());
            let logits: Vec<f32> = logits.expect("logits");
            let words = [id("no_id"), id("yes_id")];
            let question = Question {
                only: &words,
                watched: &words,
                ..Question::new("?")
            };
            let mut draft = Draft::new(&question);
            draft.choose(&logits, &[]);
            let expected = case["expected"]["p_no_yes"].as_array().expect("two");
            for (found, expected) in draft.watched[0].iter().zip(expected) {
                let gap = f64::from(*found) - expected.as_f64().expect("a number");
                assert!(gap.abs() < 1e-6, "{}: {gap}", case["id"]);
            }
            met += 1;
        }
        assert_eq!(met, 4);
    }
}
