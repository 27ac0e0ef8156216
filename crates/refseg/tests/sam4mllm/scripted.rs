//! A language model that says what it is told to.

use std::sync::{Arc, Mutex};

use refseg::{
    Image,
    chat::{Answer, ChatError, Conversation, Mllm, Question},
};

/// Its vocabulary: everything else is a token a character.
pub(crate) const NO: u32 = 7;
pub(crate) const YES: u32 = 9;
/// Probability of an answer's first token.
pub(crate) const FIRST: f32 = 0.8;

/// What it answers: to a question that has the first text, the second.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) answers: Vec<(&'static str, String)>,
    /// To a question about a box: probabilities of `No` and `Yes` at each point.
    pub(crate) confidences: Vec<(&'static str, Vec<[f32; 2]>)>,
    /// Every call, with the turns before it.
    pub(crate) calls: Arc<Mutex<Vec<Call>>>,
    /// Sizes (width, height) of the pictures it looked at.
    pub(crate) looks: Arc<Mutex<Vec<(u32, u32)>>>,
    /// Whether `Yes` is two tokens.
    pub(crate) splits_yes: bool,
}

/// Questions asked at once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) before: Vec<(String, String)>,
    pub(crate) questions: Vec<String>,
}

#[derive(Debug)]
struct Talk {
    script: Script,
    before: Vec<(String, String)>,
}

impl Mllm for Script {
    fn name(&self) -> &str {
        "scripted"
    }

    fn look(&self, image: &Image) -> Result<Box<dyn Conversation>, ChatError> {
        let size = (image.width(), image.height());
        self.looks.lock().expect("no panic").push(size);
        Ok(Box::new(Talk {
            script: self.clone(),
            before: Vec::new(),
        }))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        Ok(match text {
            "No" => vec![NO],
            "Yes" if !self.splits_yes => vec![YES],
            _ => text.chars().map(u32::from).collect(),
        })
    }

    fn unused_tensors(&self) -> &[String] {
        &[]
    }
}

impl Conversation for Talk {
    fn ask_many(&self, questions: &[Question<'_>]) -> Result<Vec<Answer>, ChatError> {
        let texts = questions.iter().map(|question| question.text.to_owned());
        self.script.calls.lock().expect("no panic").push(Call {
            before: self.before.clone(),
            questions: texts.collect(),
        });
        let answer = |question: &Question<'_>| {
            if question.only.is_empty() {
                self.in_words(question)
            } else {
                self.about_points(question)
            }
        };
        Ok(questions.iter().map(answer).collect())
    }

    fn followed_by(
        &self,
        question: &str,
        answer: &str,
    ) -> Result<Box<dyn Conversation>, ChatError> {
        let mut before = self.before.clone();
        before.push((question.to_owned(), answer.to_owned()));
        Ok(Box::new(Self {
            script: self.script.clone(),
            before,
        }))
    }

    fn length(&self) -> usize {
        self.before.len()
    }

    fn bytes(&self) -> usize {
        1
    }
}

impl Talk {
    fn in_words(&self, question: &Question<'_>) -> Answer {
        let mut answers = self.script.answers.iter();
        let said = answers.find(|(part, _)| question.text.contains(part));
        let (_, text) = said.unwrap_or_else(|| panic!("nobody expected {:?}", question.text));
        let ids: Vec<u32> = text.chars().map(u32::from).collect();
        Answer {
            log_probabilities: (0..ids.len())
                .map(|i| if i == 0 { FIRST.ln() } else { 0.0 })
                .collect(),
            watched: vec![Vec::new(); ids.len()],
            ids,
            text: text.clone(),
            ended: true,
        }
    }

    fn about_points(&self, question: &Question<'_>) -> Answer {
        assert_eq!(
            (question.only, question.watched),
            (&[NO, YES][..], &[NO, YES][..])
        );
        let mut confidences = self.script.confidences.iter();
        let said = confidences.find(|(part, _)| question.text.contains(part));
        let (_, pairs) = said.unwrap_or_else(|| panic!("nobody expected {:?}", question.text));
        assert_eq!(question.max_tokens, pairs.len());
        let likelier = |&[no, yes]: &[f32; 2]| if yes > no { YES } else { NO };
        Answer {
            text: pairs
                .iter()
                .map(|pair| if likelier(pair) == YES { "Yes" } else { "No" })
                .collect(),
            ids: pairs.iter().map(likelier).collect(),
            log_probabilities: pairs.iter().map(|[no, yes]| no.max(*yes).ln()).collect(),
            watched: pairs.iter().map(|pair| pair.to_vec()).collect(),
            ended: false,
        }
    }
}
