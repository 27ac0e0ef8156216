//! Writes the prompt: system text, image tokens, a question that names every
//! phrase, and an answer that already has one marker per phrase.
//!
//! The prompt comes in two parts. The [`Prefix`], up to `</img>`, is the same
//! for every image and phrase, so its keys and values can be kept; the
//! [`Suffix`] is all that a phrase adds.
//!
//! Reference: MLLMSeg's evaluation scripts and InternVL's conversation
//! templates. Differs: added tokens written inside a phrase stay text.

use std::str::FromStr;

use crate::tokenizer::{SpecialTokens, Tokenizer, TokenizerError};

/// System text of the template `internvl2_5`.
pub const SYSTEM_INTERNVL2_5: &str = concat!(
    "你是书生·万象，英文名是InternVL，",
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
);

/// System text of the template `internlm2-chat`.
pub const SYSTEM_INTERNLM2_CHAT: &str = concat!(
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，",
    "英文名叫InternVL, 是一个有用无害的人工智能助手。",
);

/// The longest prompt in tokens, image tokens included. The reference cuts a
/// longer one off at the end, and with it the markers.
pub const MAX_PROMPT_TOKENS: usize = 8192;

/// Label of a token that is not supervised.
pub const IGNORED_LABEL: i64 = -100;

/// How a conversation is laid out; `template` in config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Template {
    /// `internvl2_5`: ChatML with a line break after each turn.
    InternVl2_5,
    /// `internlm2-chat`: no line break after a turn, another system text.
    InternLm2Chat,
    /// `refseg-phrase`: no conversation, just `{phrase}:[SEG], {phrase}:[SEG].`
    /// behind the image. For small models trained from scratch.
    Phrase,
}

impl Template {
    /// The template that a model with this one in its config is asked in.
    ///
    /// The official evaluation scripts ask every model in `internvl2_5`, also
    /// the one that was trained in `internlm2-chat`; published scores need the
    /// same.
    pub fn for_inference(self) -> Self {
        match self {
            Self::InternVl2_5 | Self::InternLm2Chat => Self::InternVl2_5,
            Self::Phrase => Self::Phrase,
        }
    }

    /// System text and what follows `<|im_end|>`; none without a conversation.
    pub(crate) fn chat(self) -> Option<Chat> {
        match self {
            Self::InternVl2_5 => Some(Chat {
                system: SYSTEM_INTERNVL2_5,
                after_turn: "\n",
            }),
            Self::InternLm2Chat => Some(Chat {
                system: SYSTEM_INTERNLM2_CHAT,
                after_turn: "",
            }),
            Self::Phrase => None,
        }
    }
}

impl FromStr for Template {
    type Err = PromptError;

    /// Parses `template` of config.json.
    fn from_str(name: &str) -> Result<Self, PromptError> {
        match name {
            "internvl2_5" => Ok(Self::InternVl2_5),
            "internlm2-chat" => Ok(Self::InternLm2Chat),
            "refseg-phrase" => Ok(Self::Phrase),
            _ => Err(PromptError::Template {
                found: name.to_owned(),
            }),
        }
    }
}

/// What the answer says about a phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Marker {
    /// `[SEG]`: there is a target.
    Seg,
    /// `[REJ]`: there is none.
    Rej,
}

/// Why a prompt could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// config.json names an unknown template.
    #[error(
        "`template` in config.json is `{found}`, expected `internvl2_5`, `internlm2-chat` \
         or `refseg-phrase`"
    )]
    Template {
        /// The name in config.json.
        found: String,
    },
    /// There is nothing to ask for.
    #[error("a prompt needs at least one phrase")]
    NoPhrases,
    /// Phrases and markers do not pair up.
    #[error("{phrases} phrases, but {markers} markers")]
    MarkerCount {
        /// Number of phrases.
        phrases: usize,
        /// Number of markers.
        markers: usize,
    },
    /// The phrases do not fit into one prompt.
    #[error("the prompt has {found} tokens, at most {MAX_PROMPT_TOKENS} are allowed")]
    TooLong {
        /// Length of the whole prompt in tokens.
        found: usize,
    },
    /// A token is missing, or a text could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// The prompt up to and including `</img>`: the same for every image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Index of the first `<IMG_CONTEXT>`.
    pub image_start: usize,
}

/// The prompt after `</img>`. All positions count from its first token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suffix {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position of each phrase's marker. The hidden state that stands for the
    /// phrase is the one *before* it.
    pub markers: Vec<usize>,
    /// Positions that training supervises.
    supervised: Vec<usize>,
}

impl Suffix {
    /// The ids in front of the last marker: all that needs feeding, because no
    /// hidden state from there on is read.
    pub fn before_last_marker(&self) -> &[u32] {
        match self.markers.last() {
            Some(&end) => &self.ids[..end],
            None => &self.ids,
        }
    }
}

/// Writes prompts for one model.
#[derive(Debug, Clone)]
pub struct PromptBuilder {
    tokenizer: Tokenizer,
    template: Template,
    tokens: SpecialTokens,
    turns: Option<Turns>,
    num_image_tokens: usize,
    prefix_len: usize,
}

/// A chat template's fixed texts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chat {
    pub(crate) system: &'static str,
    pub(crate) after_turn: &'static str,
}

/// A chat template with the ids that begin and end its turns.
#[derive(Debug, Clone, Copy)]
struct Turns {
    chat: Chat,
    start: u32,
    end: u32,
}

impl PromptBuilder {
    /// Prepares prompts with `num_image_tokens` image tokens (256 in published
    /// models). The template is used as given: see [`Template::for_inference`].
    ///
    /// # Errors
    /// When the tokenizer lacks a token that the template needs.
    pub fn new(
        tokenizer: Tokenizer,
        template: Template,
        num_image_tokens: usize,
    ) -> Result<Self, PromptError> {
        let tokens = SpecialTokens::resolve(&tokenizer)?;
        let turns = match template.chat() {
            None => None,
            Some(chat) => Some(Turns {
                chat,
                start: tokenizer.require("<|im_start|>")?,
                end: tokenizer.require("<|im_end|>")?,
            }),
        };
        let mut builder = Self {
            tokenizer,
            template,
            tokens,
            turns,
            num_image_tokens,
            prefix_len: 0,
        };
        builder.prefix_len = builder.prefix()?.ids.len();
        Ok(builder)
    }

    /// The tokenizer that prompts are written with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The template that prompts follow.
    pub fn template(&self) -> Template {
        self.template
    }

    /// Ids of the special tokens.
    pub fn tokens(&self) -> &SpecialTokens {
        &self.tokens
    }

    /// Everything up to and including `</img>`.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the system text.
    pub fn prefix(&self) -> Result<Prefix, PromptError> {
        let mut ids = Vec::new();
        ids.extend(self.tokens.bos);
        if let Some(Turns { chat, start, end }) = self.turns {
            ids.push(start);
            ids.extend(self.encode(&format!("system\n{}", chat.system))?);
            ids.push(end);
            ids.extend(self.encode(chat.after_turn)?);
            ids.push(start);
            ids.extend(self.encode("user\n")?);
        }
        ids.push(self.tokens.img);
        let image_start = ids.len();
        ids.resize(image_start + self.num_image_tokens, self.tokens.img_context);
        ids.push(self.tokens.img_end);
        Ok(Prefix { ids, image_start })
    }

    /// Everything after `</img>` for one phrase that is taken to have a target.
    ///
    /// # Errors
    /// As [`Self::joint`].
    pub fn single(&self, phrase: &str) -> Result<Suffix, PromptError> {
        self.joint(&[phrase], &[Marker::Seg])
    }

    /// Everything after `</img>` for several phrases of one image, with the
    /// answer to each. Phrases are used exactly as written; each one's hidden
    /// state depends on those before it and, in chat templates, on the whole
    /// question.
    ///
    /// # Errors
    /// Without phrases, with another number of markers than phrases, or when
    /// the prompt exceeds [`MAX_PROMPT_TOKENS`].
    pub fn joint(&self, phrases: &[&str], markers: &[Marker]) -> Result<Suffix, PromptError> {
        if phrases.is_empty() {
            return Err(PromptError::NoPhrases);
        }
        if phrases.len() != markers.len() {
            return Err(PromptError::MarkerCount {
                phrases: phrases.len(),
                markers: markers.len(),
            });
        }
        let suffix = match self.turns {
            Some(turns) => self.conversation(turns, phrases, markers)?,
            None => self.phrases_only(phrases, markers)?,
        };
        let found = self.prefix_len + suffix.ids.len();
        if found > MAX_PROMPT_TOKENS {
            return Err(PromptError::TooLong { found });
        }
        Ok(suffix)
    }

    /// Training labels for `prefix` followed by `suffix`: the token's own id
    /// where it is supervised, [`IGNORED_LABEL`] elsewhere.
    ///
    /// Chat templates supervise the assistant's words, markers included, and
    /// `<|im_end|>`; `refseg-phrase` supervises the markers alone, since the
    /// phrases are the user's.
    pub fn labels(&self, prefix: &Prefix, suffix: &Suffix) -> Vec<i64> {
        let start = prefix.ids.len();
        let mut labels = vec![IGNORED_LABEL; start + suffix.ids.len()];
        for &position in &suffix.supervised {
            labels[start + position] = i64::from(suffix.ids[position]);
        }
        labels
    }

    fn conversation(
        &self,
        turns: Turns,
        phrases: &[&str],
        markers: &[Marker],
    ) -> Result<Suffix, PromptError> {
        // The space before `What` and the missing one before `in` are the
        // reference's; scores depend on them.
        let question = format!(
            "\n What are {}in this image? Please output segmentation masks.",
            phrases.join(", "),
        );
        let mut ids = self.encode(&question)?;
        ids.push(turns.end);
        ids.extend(self.encode(turns.chat.after_turn)?);
        ids.push(turns.start);

        // Text between two added tokens is encoded in one piece.
        let header = "assistant\n";
        let answer_start = ids.len() + self.encode(header)?.len();
        let mut positions = Vec::with_capacity(markers.len());
        let mut text = format!("{header}Sure,");
        for (phrase, &marker) in phrases.iter().zip(markers) {
            text.push_str(phrase);
            text.push(':');
            ids.extend(self.encode(&text)?);
            positions.push(ids.len());
            ids.push(self.marker_id(marker));
            ", ".clone_into(&mut text);
        }
        ids.extend(self.encode(".")?);
        ids.push(turns.end);
        let answer_end = ids.len();
        ids.extend(self.encode(turns.chat.after_turn)?);
        Ok(Suffix {
            ids,
            markers: positions,
            supervised: (answer_start..answer_end).collect(),
        })
    }

    fn phrases_only(&self, phrases: &[&str], markers: &[Marker]) -> Result<Suffix, PromptError> {
        let mut ids = Vec::new();
        let mut positions = Vec::with_capacity(markers.len());
        for (index, (phrase, &marker)) in phrases.iter().zip(markers).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            ids.extend(self.encode(&format!("{separator}{phrase}:"))?);
            positions.push(ids.len());
            ids.push(self.marker_id(marker));
        }
        ids.extend(self.encode(".")?);
        Ok(Suffix {
            ids,
            supervised: positions.clone(),
            markers: positions,
        })
    }

    fn marker_id(&self, marker: Marker) -> u32 {
        match marker {
            Marker::Seg => self.tokens.seg,
            Marker::Rej => self.tokens.rej,
        }
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        Ok(self.tokenizer.encode(text)?)
    }
}

/// A data set's sentence as the reference's evaluation asks it: lower case,
/// without surrounding white space, then without surrounding full stops.
pub fn normalise_phrase(phrase: &str) -> String {
    phrase
        .trim_matches(is_python_space)
        .to_lowercase()
        .trim_matches(is_python_space)
        .trim_matches('.')
        .to_owned()
}

/// `str.isspace` of Python, which also counts four separators of ASCII.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn sha256(text: &str) -> String {
        let digest = Sha256::digest(text);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn system_texts_are_those_of_the_reference() {
        assert_eq!(SYSTEM_INTERNVL2_5.chars().count(), 58);
        assert_eq!(
            sha256(SYSTEM_INTERNVL2_5),
            "bdb4d179c4c458dd9bd365588d3fd15aba0f2b755b4b192383416f610ad3396e"
        );
        assert_eq!(SYSTEM_INTERNLM2_CHAT.chars().count(), 59);
        assert_eq!(
            sha256(SYSTEM_INTERNLM2_CHAT),
            "da22fdde9f422876a0b725a4ecec9f15005bfaad700d33c87fe6f29b0bd09447"
        );
    }

    #[test]
    fn templates_are_parsed_and_asked_as_officially() {
        let parsed = |name: &str| name.parse::<Template>().map(Template::for_inference).ok();
        assert_eq!(parsed("internvl2_5"), Some(Template::InternVl2_5));
        assert_eq!(parsed("internlm2-chat"), Some(Template::InternVl2_5));
        assert_eq!(parsed("refseg-phrase"), Some(Template::Phrase));
        let error = "Hermes-2".parse::<Template>().expect_err("unknown");
        assert!(error.to_string().contains("`Hermes-2`"), "{error}");
    }

    #[test]
    fn phrases_are_normalised_as_in_the_reference() {
        for (raw, normalised) in [
            ("  Left MAN. ", "left man"),
            ("..the dog..", "the dog"),
            // Nothing is stripped again after the full stops.
            (". the cat .", " the cat "),
            ("\u{1F}ΟΔΟΣ\u{3000}", "οδος"),
            ("St. Bernard", "st. bernard"),
            ("...", ""),
        ] {
            assert_eq!(normalise_phrase(raw), normalised, "{raw:?}");
        }
    }
}
