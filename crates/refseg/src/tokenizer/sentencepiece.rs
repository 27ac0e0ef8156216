//! SentencePiece BPE: reads `tokenizer.model` and encodes as the library does.
//!
//! The pieces' scores decide the order of merges, the leftmost pair first
//! among equals. Converting them to a list of merges would rank pairs instead
//! of pieces and differ on texts such as `aaa`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};

use prost::Message;

use super::Reserved;

/// What SentencePiece writes for a space: U+2581.
const SPACE: &str = "\u{2581}";

/// Why a `tokenizer.model` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SentencePieceError {
    /// The file is not a SentencePiece model.
    #[error("not a SentencePiece model")]
    Decode(#[from] prost::DecodeError),
    /// The model is of another kind than BPE.
    #[error("`trainer_spec.model_type` is {found}, expected 2 (BPE)")]
    Kind {
        /// Number of the model type; 1 is unigram.
        found: i32,
    },
    /// A byte has no piece, so that some texts could not be encoded.
    #[error("no byte piece `{piece}`: a model with byte fallback is expected")]
    NoByte {
        /// The piece that is missing.
        piece: String,
    },
    /// `precompiled_charsmap` is damaged.
    #[error("`normalizer_spec.precompiled_charsmap` is damaged")]
    Charsmap,
}

/// The parsed file, before it is known which tokens are added on top.
pub(super) struct ModelFile(ModelProto);

impl ModelFile {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SentencePieceError> {
        Ok(Self(ModelProto::decode(bytes)?))
    }

    /// Number of pieces; the id of a piece is its position.
    pub(super) fn len(&self) -> usize {
        self.0.pieces.len()
    }

    /// Pieces such as `<s>` and `<unk>`, which no text can contain.
    pub(super) fn control_pieces(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0
            .pieces
            .iter()
            .zip(0..)
            .filter(|(piece, _)| matches!(piece.kind, Some(UNKNOWN | CONTROL)))
            .map(|(piece, id)| (piece.piece(), id))
    }
}

/// Encodes text into pieces, never into a reserved one.
pub(super) struct SentencePiece {
    normaliser: Normaliser,
    pieces: HashMap<Box<str>, Piece>,
    /// Ids of `<0x00>` to `<0xFF>`.
    bytes: [u32; 256],
    /// Length of the longest piece in bytes; longer pairs need no look-up.
    longest: usize,
}

#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    score: f32,
    /// May be passed through while merging, but is taken apart again.
    unused: bool,
}

impl SentencePiece {
    /// Keeps the ordinary pieces of `file`. Pieces whose text or id belongs to
    /// a reserved token are left out: `<|im_start|>` of InternLM2 is also a
    /// piece of the file, and text must not reach it.
    pub(super) fn new(file: ModelFile, reserved: &Reserved) -> Result<Self, SentencePieceError> {
        let ModelFile(proto) = file;
        let trainer = proto.trainer_spec.unwrap_or_default();
        let found = trainer.model_type.unwrap_or(UNIGRAM);
        if found != BPE {
            return Err(SentencePieceError::Kind { found });
        }

        let mut pieces: HashMap<Box<str>, Piece> = HashMap::with_capacity(proto.pieces.len());
        let mut byte_ids = HashMap::with_capacity(256);
        let mut user_defined = Vec::new();
        for (piece, id) in proto.pieces.iter().zip(0..) {
            let text = piece.piece();
            if text.is_empty() || reserved.holds(text, id) {
                continue;
            }
            let kind = piece.kind.unwrap_or(NORMAL);
            match kind {
                NORMAL | USER_DEFINED | UNUSED => {
                    let score = piece.score.unwrap_or(0.0);
                    let unused = kind == UNUSED;
                    pieces.insert(text.into(), Piece { id, score, unused });
                }
                BYTE => {
                    byte_ids.insert(text.to_owned(), id);
                }
                _ => {}
            }
            if kind == USER_DEFINED {
                user_defined.push(text.to_owned());
            }
        }

        let mut bytes = [0; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            let piece = format!("<0x{byte:02X}>");
            *id = *byte_ids
                .get(&piece)
                .ok_or(SentencePieceError::NoByte { piece })?;
        }

        let longest = pieces.keys().map(|text| text.len()).max().unwrap_or(0);
        let spec = proto.normalizer_spec.unwrap_or_default();
        Ok(Self {
            normaliser: Normaliser::new(
                &spec,
                trainer.treat_whitespace_as_suffix.unwrap_or(false),
                user_defined,
            )?,
            pieces,
            bytes,
            longest,
        })
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.normaliser.normalise(text);
        let mut taken_apart = HashMap::new();
        let symbols = self.merge(&text, &mut taken_apart);
        let mut ids = Vec::with_capacity(symbols.len());
        for symbol in &symbols {
            self.push_ids(&text[symbol.start..symbol.end], &taken_apart, &mut ids);
        }
        ids
    }

    /// The text that ids of ordinary pieces and bytes spell. The space that encoding puts before
    /// a text is left out if the text begins here.
    pub(super) fn decode(&self, ids: &[u32], is_start: bool) -> String {
        let wanted: HashMap<u32, &str> = {
            let ids: HashSet<u32> = ids.iter().copied().collect();
            let pieces = self.pieces.iter();
            pieces
                .filter(|(_, piece)| ids.contains(&piece.id))
                .map(|(text, piece)| (piece.id, &**text))
                .collect()
        };
        let mut bytes = Vec::new();
        for id in ids {
            if let Some(text) = wanted.get(id) {
                bytes.extend_from_slice(text.as_bytes());
            } else if let Some(byte) = self.bytes.iter().position(|other| other == id) {
                bytes.push(byte as u8);
            }
        }
        let text = String::from_utf8_lossy(&bytes).replace(self.normaliser.space, " ");
        match text.strip_prefix(' ') {
            Some(rest) if is_start && self.normaliser.add_dummy_prefix => rest.to_owned(),
            _ => text,
        }
    }

    /// Merges neighbours, best score first, until no pair is a piece. Pieces
    /// that must not stay are remembered with their two halves in `unused`.
    fn merge<'t>(&self, text: &'t str, unused: &mut Halves<'t>) -> Vec<Symbol> {
        let mut symbols = self.split(text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.push_pair(text, &symbols, right - 1, right, &mut queue, unused);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            // Either half may have been merged since the pair was queued.
            if left.is_empty() || right.is_empty() || right.end - left.start != pair.len {
                continue;
            }
            symbols[pair.left].end = right.end;
            symbols[pair.left].next = right.next;
            symbols[pair.right].end = right.start;
            if let Some(next) = right.next {
                symbols[next].previous = Some(pair.left);
                self.push_pair(text, &symbols, pair.left, next, &mut queue, unused);
            }
            if let Some(previous) = left.previous {
                self.push_pair(text, &symbols, previous, pair.left, &mut queue, unused);
            }
        }
        symbols.retain(|symbol| !symbol.is_empty());
        symbols
    }

    /// One symbol per character; a user-defined piece is a symbol that takes
    /// no part in merges.
    fn split(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(first) = text[start..].chars().next() {
            let user_defined = self.normaliser.user_defined.prefix_of(&text[start..]);
            let end = start + user_defined.unwrap_or(first.len_utf8());
            let index = symbols.len();
            symbols.push(Symbol {
                start,
                end,
                previous: index.checked_sub(1),
                next: (end < text.len()).then_some(index + 1),
                frozen: user_defined.is_some(),
            });
            start = end;
        }
        symbols
    }

    fn push_pair<'t>(
        &self,
        text: &'t str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        queue: &mut BinaryHeap<Pair>,
        unused: &mut Halves<'t>,
    ) {
        let (a, b) = (symbols[left], symbols[right]);
        let len = b.end - a.start;
        if a.frozen || b.frozen || len > self.longest {
            return;
        }
        let merged = &text[a.start..b.end];
        if let Some(piece) = self.pieces.get(merged) {
            queue.push(Pair {
                score: piece.score,
                left,
                right,
                len,
            });
            if piece.unused {
                unused.insert(merged, (&text[a.start..a.end], &text[b.start..b.end]));
            }
        }
    }

    fn push_ids(&self, piece: &str, unused: &Halves<'_>, ids: &mut Vec<u32>) {
        match self.pieces.get(piece) {
            Some(found) => match unused.get(piece) {
                Some((left, right)) if found.unused => {
                    self.push_ids(left, unused, ids);
                    self.push_ids(right, unused, ids);
                }
                _ => ids.push(found.id),
            },
            None => ids.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
        }
    }
}

type Halves<'t> = HashMap<&'t str, (&'t str, &'t str)>;

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    frozen: bool,
}

impl Symbol {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        // `-0.0` and `0.0` are the same score; `total_cmp` would part them.
        (self.score + 0.0)
            .total_cmp(&(other.score + 0.0))
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// `normalizer_spec`: what happens to text before it is split.
struct Normaliser {
    charsmap: Option<Charsmap>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    space: &'static str,
    whitespace_as_suffix: bool,
    user_defined: UserDefined,
}

impl Normaliser {
    fn new(
        spec: &NormalizerSpec,
        whitespace_as_suffix: bool,
        user_defined: Vec<String>,
    ) -> Result<Self, SentencePieceError> {
        let escape = spec.escape_whitespaces.unwrap_or(true);
        Ok(Self {
            charsmap: match spec.precompiled_charsmap.as_deref() {
                None | Some([]) => None,
                Some(blob) => Some(Charsmap::parse(blob).ok_or(SentencePieceError::Charsmap)?),
            },
            add_dummy_prefix: spec.add_dummy_prefix.unwrap_or(true),
            remove_extra_whitespaces: spec.remove_extra_whitespaces.unwrap_or(true),
            space: if escape { SPACE } else { " " },
            whitespace_as_suffix,
            user_defined: UserDefined::new(user_defined),
        })
    }

    fn normalise(&self, mut text: &str) -> String {
        if self.remove_extra_whitespaces {
            while let Some((" ", len)) = self.next(text) {
                text = &text[len..];
            }
        }
        if text.is_empty() {
            return String::new();
        }

        let mut normalised = String::with_capacity(text.len() + text.len() / 2);
        if self.add_dummy_prefix && !self.whitespace_as_suffix {
            normalised.push_str(self.space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while let Some((mut piece, len)) = self.next(text) {
            text = &text[len..];
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            for part in piece.split_inclusive(' ') {
                normalised.push_str(part.trim_end_matches(' '));
                if part.ends_with(' ') {
                    normalised.push_str(self.space);
                }
            }
            if !piece.is_empty() {
                after_space = self.remove_extra_whitespaces && piece.ends_with(' ');
            }
        }
        if self.remove_extra_whitespaces {
            let len = normalised.trim_end_matches(self.space).len();
            normalised.truncate(len);
        }
        if self.add_dummy_prefix && self.whitespace_as_suffix {
            normalised.push_str(self.space);
        }
        normalised
    }

    /// What `text` starts with after normalisation, and how many of its bytes
    /// that stands for. User-defined pieces stay as they are.
    fn next<'t>(&'t self, text: &'t str) -> Option<(&'t str, usize)> {
        let first = text.chars().next()?;
        if let Some(len) = self.user_defined.prefix_of(text) {
            return Some((&text[..len], len));
        }
        self.charsmap
            .as_ref()
            .and_then(|map| map.replacement(text))
            .or_else(|| Some((&text[..first.len_utf8()], first.len_utf8())))
    }
}

/// User-defined pieces by their first character, the longest first.
struct UserDefined(HashMap<char, Vec<String>>);

impl UserDefined {
    fn new(mut pieces: Vec<String>) -> Self {
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
        let mut by_first: HashMap<char, Vec<String>> = HashMap::new();
        for piece in pieces {
            if let Some(first) = piece.chars().next() {
                by_first.entry(first).or_default().push(piece);
            }
        }
        Self(by_first)
    }

    /// Length of the longest piece that `text` starts with.
    fn prefix_of(&self, text: &str) -> Option<usize> {
        let first = text.chars().next()?;
        self.0
            .get(&first)?
            .iter()
            .find(|piece| text.starts_with(piece.as_str()))
            .map(String::len)
    }
}

/// `precompiled_charsmap`: a double-array trie from strings to offsets into
/// NUL-terminated replacements.
struct Charsmap {
    trie: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    fn parse(blob: &[u8]) -> Option<Self> {
        let (size, rest) = blob.split_first_chunk::<4>()?;
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        let (trie, replacements) = rest.split_at_checked(size)?;
        let (units, []) = trie.as_chunks::<4>() else {
            return None;
        };
        Some(Self {
            trie: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: String::from_utf8(replacements.to_vec()).ok()?,
        })
    }

    /// The replacement for the longest known prefix of `text`, and the length
    /// of that prefix.
    fn replacement(&self, text: &str) -> Option<(&str, usize)> {
        let mut longest = None;
        let mut position = offset(*self.trie.first()?);
        for (index, byte) in text.bytes().enumerate() {
            position ^= usize::from(byte);
            let Some(&unit) = self.trie.get(position) else {
                break;
            };
            // The top bit marks a value; then the label cannot equal the byte.
            if unit & 0x8000_00FF != u32::from(byte) {
                break;
            }
            position ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                longest = self.trie.get(position).map(|leaf| (*leaf, index + 1));
            }
        }
        let (leaf, len) = longest?;
        let start = usize::try_from(leaf & 0x7FFF_FFFF).ok()?;
        let tail = self.replacements.get(start..)?;
        // A damaged map may stop inside a character of the text.
        text.is_char_boundary(len)
            .then(|| (tail.split('\0').next().unwrap_or(tail), len))
    }
}

/// Where the children of a trie unit are, relative to it.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

// The parts of `sentencepiece_model.proto` that decide how text is encoded.

const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

#[derive(Clone, PartialEq, prost::Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}
