//! How a conversation is written: who speaks, where the picture stands, what
//! ends a turn.
//!
//! A conversation is read in three kinds of parts: the opening, up to the
//! picture; a question, up to where its answer begins; and an answer with what
//! ends it. Between two special tokens text is encoded in one piece, as the
//! checkpoints' own code does it.

use crate::{
    prompt,
    tokenizer::{Tokenizer, TokenizerError},
};

/// System text of LLaVA-NeXT on Llama 3.
pub const SYSTEM_LLAMA_3: &str = concat!(
    "You are a helpful language and vision assistant. ",
    "You are able to understand the visual content that the user provides, ",
    "and assist the user with a variety of tasks using natural language.",
);

/// System text of LLaVA-NeXT on Vicuna.
pub const SYSTEM_VICUNA: &str = concat!(
    "A chat between a curious human and an artificial intelligence assistant. ",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
);

/// System text of Qwen-VL-Chat.
pub const SYSTEM_QWEN: &str = "You are a helpful assistant.";

/// What models write around a name, a box and a corner of one: these are
/// tokens in an answer, where the model has them, though never in a question.
const GROUNDING: [&str; 6] = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"];

/// A way to lay out conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Llama 3: roles in header tokens, `<|eot_id|>` ends each turn.
    Llama3,
    /// Vicuna: `USER:` and `ASSISTANT:`, `</s>` ends an answer.
    Vicuna,
    /// Mistral: questions in `[INST]`, `</s>` ends an answer.
    Mistral,
    /// ChatML: `<|im_start|>` and `<|im_end|>` around each turn, the picture in `<img>`.
    ChatMl {
        /// System text.
        system: &'static str,
        /// What follows `<|im_end|>`.
        after_turn: &'static str,
        /// What precedes `<img>`.
        before_picture: &'static str,
    },
    /// Nothing but the picture in `<img>`, questions, and answers that `<|im_end|>` ends: for small
    /// models, to which roles would be nothing but longer ways.
    Plain,
}

/// What `template` of `config.json` calls [`Layout::Plain`].
pub(crate) const PLAIN: &str = "refseg-talk";

impl Layout {
    /// How InternVL is talked with; `None` if it was not made for it.
    pub(crate) fn of_internvl(template: prompt::Template) -> Option<Self> {
        let chat = template.chat()?;
        Some(Self::ChatMl {
            system: chat.system,
            after_turn: chat.after_turn,
            before_picture: "",
        })
    }

    /// The special token that ends an answer.
    fn end(self) -> &'static str {
        match self {
            Self::Llama3 => "<|eot_id|>",
            Self::Vicuna | Self::Mistral => "</s>",
            Self::ChatMl { .. } | Self::Plain => "<|im_end|>",
        }
    }
}

/// Writes the parts of conversations as token ids.
#[derive(Debug, Clone)]
pub(crate) struct ChatTemplate {
    pub(crate) tokenizer: Tokenizer,
    layout: Layout,
}

/// A question's place in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Right behind the picture.
    First,
    /// Behind an answer.
    Later,
}

impl ChatTemplate {
    pub(crate) fn new(tokenizer: Tokenizer, layout: Layout) -> Self {
        Self { tokenizer, layout }
    }

    /// The token that ends an answer.
    pub(crate) fn end(&self) -> Result<u32, TokenizerError> {
        self.tokenizer.require(self.layout.end())
    }

    /// Everything in front of the picture.
    pub(crate) fn opening(&self) -> Result<Vec<u32>, TokenizerError> {
        let writer = Writer::new(&self.tokenizer).ids(self.tokenizer.prefix());
        match self.layout {
            // The rendered text begins with the token that the tokenizer puts
            // before it anyway, so that it stands there twice.
            Layout::Llama3 => writer
                .token("<|begin_of_text|>")?
                .llama_header("system")?
                .text(SYSTEM_LLAMA_3)
                .token("<|eot_id|>")?
                .llama_header("user")?,
            Layout::Vicuna => writer.text(SYSTEM_VICUNA).text(" USER: "),
            Layout::Mistral => writer.text("[INST] "),
            Layout::Plain => writer.token("<img>")?,
            Layout::ChatMl {
                system,
                after_turn,
                before_picture,
            } => writer
                .token("<|im_start|>")?
                .text("system\n")
                .text(system)
                .token("<|im_end|>")?
                .text(after_turn)
                .token("<|im_start|>")?
                .text("user\n")
                .text(before_picture)
                .token("<img>")?,
        }
        .finish()
    }

    /// From behind the picture, or behind the answer before, to where the answer begins.
    pub(crate) fn question(&self, text: &str, place: Place) -> Result<Vec<u32>, TokenizerError> {
        let writer = Writer::new(&self.tokenizer);
        let is_first = place == Place::First;
        match self.layout {
            Layout::Llama3 => {
                let begun = if is_first {
                    // The picture and its line break are part of what is trimmed.
                    writer.text("\n").text(text.trim_end())
                } else {
                    writer.llama_header("user")?.text(text.trim())
                };
                begun.token("<|eot_id|>")?.llama_header("assistant")?
            }
            Layout::Vicuna => {
                let begun = writer.text(if is_first { "\n" } else { "USER: " });
                begun.text(text).text(" ASSISTANT:")
            }
            Layout::Mistral => {
                let begun = writer.text(if is_first { "\n" } else { "[INST] " });
                begun.text(text).text(" [/INST]")
            }
            Layout::Plain if is_first => writer.token("</img>")?.text(text),
            Layout::Plain => writer.text(text),
            Layout::ChatMl { after_turn, .. } => {
                let begun = if is_first {
                    writer.token("</img>")?.text("\n")
                } else {
                    writer.token("<|im_start|>")?.text("user\n")
                };
                begun
                    .text(text)
                    .token("<|im_end|>")?
                    .text(after_turn)
                    .token("<|im_start|>")?
                    .text("assistant\n")
            }
        }
        .finish()
    }

    /// The words of an answer and what ends it.
    pub(crate) fn answer(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let writer = Writer::new(&self.tokenizer).grounded_text(text.trim())?;
        match self.layout {
            Layout::Llama3 | Layout::Vicuna | Layout::Plain => writer.token(self.layout.end())?,
            Layout::Mistral => writer.text(" ").token(self.layout.end())?,
            Layout::ChatMl { after_turn, .. } => writer.token(self.layout.end())?.text(after_turn),
        }
        .finish()
    }
}

/// Puts special tokens and text in a row; neighbouring texts are encoded in one piece.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    text: String,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            ids: Vec::new(),
            text: String::new(),
        }
    }

    fn ids(mut self, ids: &[u32]) -> Self {
        self.ids.extend_from_slice(ids);
        self
    }

    fn text(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    /// Text in which [`GROUNDING`] is recognised.
    fn grounded_text(self, text: &str) -> Result<Self, TokenizerError> {
        let is_known = |token: &&str| self.tokenizer.added_token(token).is_some();
        let tokens: Vec<&str> = GROUNDING.into_iter().filter(is_known).collect();
        let (mut writer, mut rest) = (self, text);
        while let Some((at, token)) = tokens
            .iter()
            .filter_map(|token| Some((rest.find(token)?, *token)))
            .min()
        {
            writer = writer.text(&rest[..at]).token(token)?;
            rest = &rest[at + token.len()..];
        }
        Ok(writer.text(rest))
    }

    fn token(mut self, token: &str) -> Result<Self, TokenizerError> {
        self.encode_text()?;
        self.ids.push(self.tokenizer.require(token)?);
        Ok(self)
    }

    /// `role` between Llama 3's header tokens, and the blank line behind.
    fn llama_header(self, role: &str) -> Result<Self, TokenizerError> {
        let header = self.token("<|start_header_id|>")?.text(role);
        Ok(header.token("<|end_header_id|>")?.text("\n\n"))
    }

    fn finish(mut self) -> Result<Vec<u32>, TokenizerError> {
        self.encode_text()?;
        Ok(self.ids)
    }

    fn encode_text(&mut self) -> Result<(), TokenizerError> {
        if !self.text.is_empty() {
            self.ids.extend(self.tokenizer.encode(&self.text)?);
            self.text.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error, path::Path};

    use super::*;

    type Outcome = Result<(), Box<dyn Error>>;

    /// Two rounds of the fixture `llava-next-tiny`: the ids of the reference, -200 for the picture.
    #[test]
    fn llama_3_is_written_as_the_reference_writes_it() -> Outcome {
        let folder = fixture("llava/llava-next-tiny");
        let template = ChatTemplate::new(Tokenizer::from_folder(&folder)?, Layout::Llama3);
        let bytes = std::fs::read(folder.join("case.json"))?;
        let description: serde_json::Value = serde_json::from_slice(&bytes)?;
        let cases = description["cases"].as_array().ok_or("cases")?;
        assert_eq!(cases.len(), 5);
        for case in cases {
            let text = |name: &str| case[name].as_str().ok_or("a text");
            let first = between(text("round1_prompt")?, "<image>\n", "<|eot_id|>");
            let header = "user<|end_header_id|>\n\n";
            let second = between(text("round2_prompt")?, header, "<|eot_id|>");
            let mut ids: Vec<i64> = template.opening()?.into_iter().map(i64::from).collect();
            ids.push(-200);
            ids.extend(widened(template.question(first, Place::First)?));
            assert_eq!(serde_json::json!(ids), case["round1_ids"]);
            // White space around an answer is not said.
            let answer = format!("\n{} ", text("round1_answer")?);
            ids.extend(widened(template.answer(&answer)?));
            ids.extend(widened(template.question(second, Place::Later)?));
            assert_eq!(serde_json::json!(ids), case["round2_ids"]);
        }
        Ok(())
    }

    /// What is asked of InternVL is what [`prompt`] writes, but for the question itself.
    #[test]
    fn internvl_is_talked_with_as_in_its_prompts() -> Outcome {
        let folder = fixture("mllmseg-qwen2-res");
        let tokenizer = Tokenizer::from_folder(&folder)?;
        let layout = Layout::of_internvl(prompt::Template::InternVl2_5).ok_or("a chat")?;
        assert_eq!(Layout::of_internvl(prompt::Template::Phrase), None);
        let template = ChatTemplate::new(tokenizer.clone(), layout);
        let builder = prompt::PromptBuilder::new(tokenizer, prompt::Template::InternVl2_5, 4)?;
        let prefix = builder.prefix()?;
        assert_eq!(template.opening()?, prefix.ids[..prefix.image_start]);
        let question = " What are the dogin this image? Please output segmentation masks.";
        let mut ids = template.question(question, Place::First)?;
        let answer_start = ids.len();
        ids.extend(template.answer("Sure,the dog:")?);
        let suffix = builder.single("the dog")?;
        assert_eq!(ids[0], prefix.ids[prefix.ids.len() - 1], "</img>");
        assert_eq!(ids[1..answer_start], suffix.ids[..answer_start - 1]);
        Ok(())
    }

    #[test]
    fn rounds_of_other_layouts_follow_each_other() -> Outcome {
        let tokenizer = Tokenizer::from_folder(&fixture("mllmseg-qwen2-res"))?;
        let system = Layout::ChatMl {
            system: "S",
            after_turn: "\n",
            before_picture: "P: ",
        };
        let template = ChatTemplate::new(tokenizer.clone(), system);
        let parts = [
            template.opening()?,
            template.question("Q", Place::First)?,
            template.answer(" A\n")?,
            template.question("R", Place::Later)?,
        ];
        let expected = [
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP: <img>",
            "</img>\nQ<|im_end|>\n<|im_start|>assistant\n",
            "A<|im_end|>\n",
            "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
        ];
        for (part, expected) in parts.iter().zip(expected) {
            assert_eq!(tokenizer.decode(part)?, expected);
        }
        let mistral = ChatTemplate::new(tokenizer.clone(), Layout::Mistral);
        assert_eq!(tokenizer.decode(&mistral.opening()?)?, "[INST] ");
        assert_eq!(
            tokenizer.decode(&mistral.question("Q", Place::First)?)?,
            "\nQ [/INST]"
        );
        assert_eq!(
            tokenizer.decode(&mistral.question("R", Place::Later)?)?,
            "[INST] R [/INST]"
        );
        let vicuna = ChatTemplate::new(tokenizer.clone(), Layout::Vicuna);
        assert_eq!(
            tokenizer.decode(&vicuna.opening()?)?,
            format!("{SYSTEM_VICUNA} USER: ")
        );
        assert_eq!(
            tokenizer.decode(&vicuna.question("Q", Place::First)?)?,
            "\nQ ASSISTANT:"
        );
        assert_eq!(
            tokenizer.decode(&vicuna.question("R", Place::Later)?)?,
            "USER: R ASSISTANT:"
        );
        let plain = ChatTemplate::new(tokenizer.clone(), Layout::Plain);
        let parts = [
            plain.opening()?,
            plain.question("Q", Place::First)?,
            plain.answer(" A\n")?,
            plain.question("R", Place::Later)?,
        ];
        assert_eq!(
            tokenizer.decode(&parts.concat())?,
            "<img></img>QA<|im_end|>R"
        );
        // Qwen2 has no `</s>`, and says so.
        assert!(vicuna.answer("A").is_err() && mistral.end().is_err());
        Ok(())
    }

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name)
    }

    fn between<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
        let start = text.rfind(begin).map_or(0, |start| start + begin.len());
        let text = &text[start..];
        &text[..text.find(end).unwrap_or(text.len())]
    }

    fn widened(ids: Vec<u32>) -> impl Iterator<Item = i64> {
        ids.into_iter().map(i64::from)
    }
}
