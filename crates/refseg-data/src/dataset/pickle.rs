//! Reads pickles of plain values: whole numbers, texts, lists and dictionaries.
//!
//! A pickle is a program for a small machine with a stack, and some of its instructions
//! call Python functions. Those are refused by name; nothing is ever executed.
//!
//! Values lie in one flat list and point to each other by index. So a value that is
//! named a million times is stored once, no nesting is too deep, a list may even hold
//! itself, and memory grows with the file, never with what the file claims. (Readers
//! that build trees copy a shared value wherever it is named: a kilobyte of pickle can
//! ask for any amount of memory.)

use std::borrow::Cow;
use std::collections::HashMap;

/// Why a pickle could not be read. Positions are bytes from the beginning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// The file ends within an instruction, or before the one that ends a pickle.
    #[error("byte {at}: the pickle ends early; {wanted}")]
    Truncated {
        /// Where the instruction begins that is not complete.
        at: usize,
        /// What is missing.
        wanted: String,
    },
    /// The pickle would have Python import or call something.
    #[error(
        "byte {at}: instruction {instruction} makes Python run {name}; only plain values are \
         read, and nothing is executed"
    )]
    Executes {
        /// Where the instruction begins.
        at: usize,
        /// Its name in Python's `pickletools`.
        instruction: &'static str,
        /// What would be run.
        name: String,
    },
    /// A byte that is no instruction, or one for a kind of value that is not read.
    #[error("byte {at}: {found:#04x} is no instruction for numbers, texts, lists or dictionaries")]
    Instruction {
        /// Where it is.
        at: usize,
        /// The byte.
        found: u8,
    },
    /// An instruction that cannot be followed.
    #[error("byte {at}: {found}")]
    Malformed {
        /// Where the instruction begins.
        at: usize,
        /// What is wrong with it.
        found: &'static str,
    },
    /// More bytes than any real file has.
    #[error("{bytes} bytes, but at most {limit} are read as a pickle")]
    TooLong {
        /// Length of the pickle.
        bytes: usize,
        /// The greatest length read.
        limit: usize,
    },
    /// Shared values that, written out, take far more memory than the file.
    #[error("its references repeat shared values until they take more than {limit} bytes")]
    Expands {
        /// The most that references of a file of this length may take.
        limit: usize,
    },
}

/// Most bytes of a pickle. The references of RefCOCO take less than a tenth.
const MAX_BYTES: usize = 512 << 20;

/// How errors describe a number that does not fit [`Value::Integer`].
const LONG: &str = "a number of more than 64 bits";

/// A function that is known by name, and never called: Python 3 has no other way to write a byte
/// string in protocols 0 to 2 than `_codecs.encode(letters, "latin1")`.
const ENCODE: &str = "the function `_codecs.encode`";
/// [`ENCODE`] behind a GLOBAL instruction.
const ENCODE_LINES: &[u8] = b"_codecs\nencode\n";

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

/// Index of a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Id(u32);

/// A plain value.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// A whole number of at most 64 bits.
    Integer(i64),
    /// A text; byte strings count as UTF-8 if they are, and as Latin-1 if not.
    Text(Cow<'a, str>),
    /// A list or a tuple.
    List(Vec<Id>),
    /// A dictionary, in the order in which it was filled.
    Dictionary(Vec<(Id, Id)>),
    /// Any other value, as errors describe it.
    Other(&'static str),
}

impl<'a> Pickle<'a> {
    /// Reads a pickle of protocol 0 to 5. What stands behind its end is ignored.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, PickleError> {
        if bytes.len() > MAX_BYTES {
            return Err(PickleError::TooLong {
                bytes: bytes.len(),
                limit: MAX_BYTES,
            });
        }
        let mut machine = Machine {
            bytes,
            at: 0,
            start: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Self {
            values: machine.values,
            root,
        })
    }

    /// The value that the pickle stands for.
    pub(super) fn root(&self) -> &Value<'a> {
        self.value(self.root)
    }

    pub(super) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// What a dictionary holds under `key`; the last, if there are several.
    pub(super) fn field(&self, dictionary: &[(Id, Id)], key: &str) -> Option<&Value<'a>> {
        let named =
            |(name, _): &&(Id, Id)| matches!(self.value(*name), Value::Text(text) if text == key);
        let (_, value) = dictionary.iter().rfind(named)?;
        Some(self.value(*value))
    }
}

impl Value<'_> {
    /// The value in words, cut off where it gets long.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(number) => format!("the number {number}"),
            Self::Text(text) => {
                let start: String = text.chars().take(40).collect();
                format!("the text {start:?}")
            }
            Self::List(items) => format!("a list of {}", items.len()),
            Self::Dictionary(entries) => format!("a dictionary of {}", entries.len()),
            Self::Other(what) => (*what).to_owned(),
        }
    }
}

/// The stack machine that a pickle is a program for.
struct Machine<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    /// The instruction being followed.
    start: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks; what lies below the last is out of reach.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            self.start = self.at;
            let [instruction] = self.array()?;
            match instruction {
                b'.' => return self.pop(),
                // The protocol's number, and the length of a frame: neither is needed.
                0x80 => self.array::<1>().map(drop)?,
                0x95 => self.array::<8>().map(drop)?,

                b'N' => self.push(Value::Other("None")),
                0x88 | 0x89 => self.push(Value::Other("a truth value")),
                b'I' => {
                    let value = match self.line()? {
                        b"00" | b"01" => Value::Other("a truth value"),
                        digits => self.integer(digits)?,
                    };
                    self.push(value);
                }
                b'L' => {
                    let line = self.line()?;
                    let value = self.integer(line.strip_suffix(b"L").unwrap_or(line))?;
                    self.push(value);
                }
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Value::Integer(number.into()));
                }
                b'K' => {
                    let [number] = self.array()?;
                    self.push(Value::Integer(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Value::Integer(number.into()));
                }
                0x8a => {
                    let [length] = self.array()?;
                    self.long(length.into())?;
                }
                0x8b => {
                    let length = self.length32()?;
                    self.long(length)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Value::Other("a fraction"));
                }
                b'G' => {
                    self.array::<8>()?;
                    self.push(Value::Other("a fraction"));
                }

                b'S' => {
                    let line = self.line()?;
                    let bytes = self.quoted(line)?;
                    self.push(Value::Text(Cow::Owned(text(&bytes).into_owned())));
                }
                b'U' | b'C' => {
                    let [length] = self.array()?;
                    self.byte_string(length.into())?;
                }
                b'T' | b'B' => {
                    let length = self.length32()?;
                    self.byte_string(length)?;
                }
                0x8e => {
                    let length = self.length64()?;
                    self.byte_string(length)?;
                }
                b'V' => {
                    let line = self.line()?;
                    let text = self.escaped(line)?;
                    self.push(Value::Text(Cow::Owned(text)));
                }
                0x8c => {
                    let [length] = self.array()?;
                    self.unicode(length.into())?;
                }
                b'X' => {
                    let length = self.length32()?;
                    self.unicode(length)?;
                }
                0x8d => {
                    let length = self.length64()?;
                    self.unicode(length)?;
                }

                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    if self.stack.len() == self.floor() && self.marks.pop().is_some() {
                        continue;
                    }
                    self.pop()?;
                }
                b'1' => self.above_mark().map(drop)?,
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }

                b']' | b')' => self.push(Value::List(Vec::new())),
                b'l' | b't' => {
                    let items = self.above_mark()?;
                    self.push(Value::List(items));
                }
                0x85..=0x87 => {
                    let length = usize::from(instruction - 0x84);
                    let mut items = Vec::with_capacity(length);
                    for _ in 0..length {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Value::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(&[item])?;
                }
                b'e' => {
                    let items = self.above_mark()?;
                    self.extend_list(&items)?;
                }

                b'}' => self.push(Value::Dictionary(Vec::new())),
                b'd' => {
                    let items = self.above_mark()?;
                    self.push(Value::Dictionary(Vec::new()));
                    self.extend_dictionary(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dictionary(&[key, value])?;
                }
                b'u' => {
                    let items = self.above_mark()?;
                    self.extend_dictionary(&items)?;
                }

                b'p' => {
                    let key = self.memo_line()?;
                    self.remember(key)?;
                }
                b'q' => {
                    let [key] = self.array()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'g' => {
                    let key = self.memo_line()?;
                    self.recall(key)?;
                }
                b'h' => {
                    let [key] = self.array()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }

                b'c' if self.bytes[self.at..].starts_with(ENCODE_LINES) => {
                    self.at += ENCODE_LINES.len();
                    self.push(Value::Other(ENCODE));
                }
                b'R' => {
                    let bytes = self.encoded().ok_or_else(|| self.refusal(instruction))?;
                    self.stack.truncate(self.stack.len() - 2);
                    self.push(Value::Text(Cow::Owned(text(&bytes).into_owned())));
                }

                _ => return Err(self.refusal(instruction)),
            }
        }
    }

    /// The byte string that a call of [`ENCODE`] with what lies on the stack stands for.
    fn encoded(&self) -> Option<Vec<u8>> {
        let [.., function, arguments] = self.stack[self.floor()..] else {
            return None;
        };
        let value = |id: Id| &self.values[id.0 as usize];
        let (Value::Other(ENCODE), Value::List(arguments)) = (value(function), value(arguments))
        else {
            return None;
        };
        let [letters, encoding] = arguments[..] else {
            return None;
        };
        match (value(letters), value(encoding)) {
            (Value::Text(letters), Value::Text(encoding)) if encoding == "latin1" => letters
                .chars()
                .map(|letter| u8::try_from(letter).ok())
                .collect(),
            _ => None,
        }
    }

    /// Why an instruction is not followed.
    fn refusal(&mut self, instruction: u8) -> PickleError {
        let at = self.start;
        let (name, named_in_lines) = match instruction {
            b'c' => ("GLOBAL", true),
            b'i' => ("INST", true),
            0x93 => ("STACK_GLOBAL", false),
            b'R' => ("REDUCE", false),
            b'b' => ("BUILD", false),
            b'o' => ("OBJ", false),
            0x81 => ("NEWOBJ", false),
            0x92 => ("NEWOBJ_EX", false),
            b'P' => ("PERSID", false),
            b'Q' => ("BINPERSID", false),
            0x82..=0x84 => ("EXT", false),
            found => return PickleError::Instruction { at, found },
        };
        let mut named = Vec::new();
        if named_in_lines {
            named.extend(self.line().map(text));
            named.extend(self.line().map(text));
        } else if instruction == 0x93 {
            let last = self.stack.iter().rev().take(2).rev();
            named.extend(last.filter_map(|id| match &self.values[id.0 as usize] {
                Value::Text(text) => Some(Cow::Borrowed(&**text)),
                _ => None,
            }));
        }
        PickleError::Executes {
            at,
            instruction: name,
            name: match named.is_empty() {
                true => "code".to_owned(),
                false => format!("`{}`", named.join(".")),
            },
        }
    }

    fn push(&mut self, value: Value<'a>) {
        // One value an instruction: there are fewer than MAX_BYTES.
        self.stack.push(Id(self.values.len() as u32));
        self.values.push(value);
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, PickleError> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(self.malformed("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let Some(mark) = self.marks.pop() else {
            return Err(self.malformed("there is no mark on the stack"));
        };
        // Nothing below a mark is ever taken, so the stack is at least as high.
        Ok(self.stack.drain(mark..).collect())
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let top = self.top()?;
        match &mut self.values[top.0 as usize] {
            Value::List(list) => list.extend_from_slice(items),
            _ => return Err(self.malformed("items are put into something that is no list")),
        }
        Ok(())
    }

    fn extend_dictionary(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[top.0 as usize] {
            Value::Dictionary(entries) if rest.is_empty() => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            Value::Dictionary(_) => return Err(self.malformed("a key has no value")),
            _ => return Err(self.malformed("a key is put into something that is no dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleError> {
        let Some(&id) = self.memo.get(&key) else {
            return Err(self.malformed("a value is recalled that was not memorised"));
        };
        self.stack.push(id);
        Ok(())
    }

    fn long(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let value = if bytes.len() <= 8 {
            let negative = bytes.last().is_some_and(|&high| high >= 0x80);
            let mut number = [if negative { 0xff } else { 0 }; 8];
            number[..bytes.len()].copy_from_slice(bytes);
            Value::Integer(i64::from_le_bytes(number))
        } else {
            Value::Other(LONG)
        };
        self.push(value);
        Ok(())
    }

    fn byte_string(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        self.push(Value::Text(text(bytes)));
        Ok(())
    }

    fn unicode(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))?;
        self.push(Value::Text(Cow::Borrowed(text)));
        Ok(())
    }

    fn integer(&self, decimal: &[u8]) -> Result<Value<'a>, PickleError> {
        let digits = decimal.strip_prefix(b"-").unwrap_or(decimal);
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(self.malformed("a number is not written in decimal digits"));
        }
        let number = std::str::from_utf8(decimal)
            .ok()
            .and_then(|s| s.parse().ok());
        Ok(number.map_or(Value::Other(LONG), Value::Integer))
    }

    fn memo_line(&mut self) -> Result<u32, PickleError> {
        let line = self.line()?;
        let number = std::str::from_utf8(line).ok().and_then(|s| s.parse().ok());
        number.ok_or_else(|| self.malformed("a memo's number is not written in decimal digits"))
    }

    /// The bytes of a Python 2 string literal.
    fn quoted(&self, literal: &[u8]) -> Result<Vec<u8>, PickleError> {
        let malformed = || self.malformed("a text is not a Python string literal");
        let mut bytes = match literal {
            [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner.iter(),
            _ => return Err(malformed()),
        };
        let mut plain = Vec::with_capacity(bytes.len());
        while let Some(&byte) = bytes.next() {
            if byte != b'\\' {
                plain.push(byte);
                continue;
            }
            plain.push(match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(&same @ (b'\\' | b'\'' | b'"')) => same,
                Some(b'x') => {
                    let digits = hexadecimal(&mut bytes, 2).ok_or_else(malformed)?;
                    digits as u8
                }
                _ => return Err(malformed()),
            });
        }
        Ok(plain)
    }

    /// Python's `raw-unicode-escape`: Latin-1, and `\u` and `\U` with hexadecimal digits.
    fn escaped(&self, line: &[u8]) -> Result<String, PickleError> {
        // Python 2 may have written one character as two surrogates.
        let mut units = Vec::with_capacity(line.len());
        let mut bytes = line.iter();
        while let Some(&byte) = bytes.next() {
            let length = match (byte, bytes.as_slice().first()) {
                (b'\\', Some(b'u')) => 4,
                (b'\\', Some(b'U')) => 8,
                _ => {
                    units.push(byte.into());
                    continue;
                }
            };
            bytes.next();
            let code = hexadecimal(&mut bytes, length);
            match (code.and_then(char::from_u32), code) {
                (Some(character), _) => {
                    units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
                }
                (None, Some(surrogate @ 0xd800..=0xdfff)) => units.push(surrogate as u16),
                _ => return Err(self.malformed("a text has a broken \\u escape")),
            }
        }
        String::from_utf16(&units)
            .map_err(|_| self.malformed("a text has half of a surrogate pair"))
    }

    fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.truncated("a line does not end"));
        };
        self.at += end + 1;
        Ok(&rest[..end])
    }

    fn length32(&mut self) -> Result<usize, PickleError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length64(&mut self) -> Result<usize, PickleError> {
        let length = u64::from_le_bytes(self.array()?);
        // What does not fit is longer than the file in any case.
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let Some(&bytes) = self.bytes[self.at..].first_chunk() else {
            return Err(self.truncated("an instruction is missing or incomplete"));
        };
        self.at += N;
        Ok(bytes)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.at..];
        let Some(bytes) = rest.get(..length) else {
            return Err(self.truncated(format!(
                "{length} bytes are announced, and {} are left",
                rest.len()
            )));
        };
        self.at += length;
        Ok(bytes)
    }

    fn truncated(&self, wanted: impl Into<String>) -> PickleError {
        PickleError::Truncated {
            at: self.start,
            wanted: wanted.into(),
        }
    }

    fn malformed(&self, found: &'static str) -> PickleError {
        PickleError::Malformed {
            at: self.start,
            found,
        }
    }
}

/// A byte string of Python 2 as text.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.iter().copied().map(char::from).collect()),
    }
}

/// The value of the next `length` hexadecimal digits.
fn hexadecimal(bytes: &mut std::slice::Iter<'_, u8>, length: usize) -> Option<u32> {
    let mut value = 0;
    for _ in 0..length {
        let digit = char::from(*bytes.next()?).to_digit(16)?;
        value = value << 4 | digit;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(bytes: &[u8]) -> Result<Vec<String>, PickleError> {
        let pickle = Pickle::parse(bytes)?;
        let Value::List(items) = pickle.root() else {
            return Ok(vec![pickle.root().describe()]);
        };
        let describe = |&id: &Id| pickle.value(id).describe();
        Ok(items.iter().map(describe).collect())
    }

    fn message(bytes: &[u8]) -> String {
        match Pickle::parse(bytes) {
            Ok(pickle) => format!("read: {:?}", pickle.root()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn byte_strings_are_utf8_or_latin1() -> Result<(), PickleError> {
        let expected = [
            "the text \"café\"",
            "the text \"café\"",
            "the text \"'\\n\\\\\"",
        ];
        let quoted = b"(lp0\nS'caf\\xe9'\np1\naS\"caf\\xc3\\xa9\"\naS'\\'\\n\\\\'\na.";
        assert_eq!(texts(quoted)?, expected);
        let counted = b"\x80\x02]q\0(U\x04caf\xe9q\x01T\x05\0\0\0caf\xc3\xa9U\x03'\n\\e.";
        assert_eq!(texts(counted)?, expected);
        Ok(())
    }

    #[test]
    fn unicode_of_python_2_may_be_in_surrogates() -> Result<(), PickleError> {
        let escaped = b"(lVcaf\xe9 \\u676f\naV\\ud83d\\ude00\naV\\U0001f600\na.";
        let expected = ["the text \"café 杯\"", "the text \"😀\"", "the text \"😀\""];
        assert_eq!(texts(escaped)?, expected);
        assert!(message(b"V\\ud83d\n.").contains("half of a surrogate pair"));
        assert!(message(b"V\\u12\n.").contains("broken \\u escape"));
        Ok(())
    }

    #[test]
    fn numbers_of_every_kind() -> Result<(), PickleError> {
        let bytes = b"(I-7\nL123L\nJ\xfe\xff\xff\xffK\xffM\x01\x01\x8a\x02\x00\xff\x8a\0\
            \x8b\x08\0\0\0\0\0\0\0\0\0\0\x80\x8a\x09\0\0\0\0\0\0\0\0\x01I01\nF1.5\nNl.";
        let expected = [
            "the number -7",
            "the number 123",
            "the number -2",
            "the number 255",
            "the number 257",
            "the number -256",
            "the number 0",
            "the number -9223372036854775808",
            "a number of more than 64 bits",
            "a truth value",
            "a fraction",
            "None",
        ];
        assert_eq!(texts(bytes)?, expected);
        Ok(())
    }

    #[test]
    fn code_is_refused_by_name() {
        for (bytes, start) in [
            (
                &b"cos\nsystem\n(S'true'\ntR."[..],
                "byte 0: instruction GLOBAL makes Python run `os.system`; only plain values",
            ),
            (
                b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.",
                "byte 14: instruction STACK_GLOBAL makes Python run `os.system`;",
            ),
            (
                b"(ios\nsystem\n.",
                "byte 1: instruction INST makes Python run `os.system`;",
            ),
            (b"N)R.", "byte 2: instruction REDUCE makes Python run code;"),
            (b"N}b.", "byte 2: instruction BUILD makes Python run code;"),
            (
                b"N)\x81.",
                "byte 2: instruction NEWOBJ makes Python run code;",
            ),
        ] {
            assert!(message(bytes).starts_with(start), "{}", message(bytes));
        }
    }

    /// As Python 3 writes `[b"left mug", b"caf\xe9"]` in protocol 2, and attempts to misuse it.
    #[test]
    fn byte_strings_of_python_3_are_no_code() -> Result<(), PickleError> {
        let bytes = b"\x80\x02]q\0(c_codecs\nencode\nq\x01X\x08\0\0\0left mugq\x02\
            X\x06\0\0\0latin1q\x03\x86q\x04Rq\x05h\x01X\x05\0\0\0caf\xc3\xa9q\x06h\x03\x86Re.";
        assert_eq!(
            texts(bytes)?,
            ["the text \"left mug\"", "the text \"café\""]
        );
        for bytes in [
            &b"c_codecs\ndecode\n(S'a'\nS'latin1'\ntR."[..],
            b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
            b"c_codecs\nencode\n(S'a'\ntR.",
            b"c_codecs\nencode\n(V\\u676f\nS'latin1'\ntR.",
            b"(S'a'\nS'latin1'\ntR.",
        ] {
            assert!(
                message(bytes).contains("makes Python run"),
                "{}",
                message(bytes)
            );
        }
        Ok(())
    }

    #[test]
    fn a_claimed_length_reserves_nothing() {
        for bytes in [
            &b"X\xff\xff\xff\xffab"[..],
            b"T\xff\xff\xff\x7fab",
            b"B\xff\xff\xff\xffab",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffab",
            b"\x8b\xff\xff\xff\xffab",
            b"U\xffab",
        ] {
            let message = message(bytes);
            assert!(message.contains("announced, and 2 are left"), "{message}");
        }
    }

    /// A reader that recurses, or drops values recursively, overflows its stack here.
    #[test]
    fn no_nesting_is_too_deep() -> Result<(), PickleError> {
        const DEPTH: usize = 1_000_000;
        let mut lists = vec![b']'; DEPTH];
        lists.extend(std::iter::repeat_n(b'a', DEPTH - 1));
        lists.push(b'.');
        assert_eq!(texts(&lists)?, ["a list of 1"]);
        let mut tuples = vec![b'N'];
        tuples.extend(std::iter::repeat_n(0x85, DEPTH));
        tuples.push(b'.');
        assert_eq!(texts(&tuples)?, ["a list of 1"]);
        Ok(())
    }

    /// Written out, this is 2 to the power of 60 values.
    #[test]
    fn shared_values_are_stored_once() -> Result<(), PickleError> {
        let mut bytes = b"]q\0".to_vec();
        for level in 0..60 {
            bytes.extend([b']', b'q', level + 1, b'h', level, b'a', b'h', level, b'a']);
        }
        bytes.push(b'.');
        assert_eq!(texts(&bytes)?, ["a list of 2", "a list of 2"]);
        assert_eq!(texts(b"]q\0h\0a.")?, ["a list of 1"]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for bytes in [
            &b""[..],
            b".",
            b"N",
            b"(.",
            b"N(.",
            b"Na.",
            b"NNa.",
            b"]a.",
            b"](a.",
            b"e.",
            b"N(e.",
            b"}(NNNu.",
            b"}Ns.",
            b"NNNs.",
            b"h\0.",
            b"g1\n.",
            b"gx\n.",
            b"q\0.",
            b"I1x\n.",
            b"I-\n.",
            b"L\n.",
            b"S'a\n.",
            b"S'a\\q'\n.",
            b"X\x01\0\0\0\xff.",
            b"\x85.",
            b"0.",
            b"1.",
            b"2.",
            b"\xff.",
        ] {
            assert!(Pickle::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        let unknown = message(b"\x8f.");
        assert!(
            unknown.starts_with("byte 0: 0x8f is no instruction"),
            "{unknown}"
        );
    }

    /// Every beginning of a pickle is an error, and every wrong byte an error or a value.
    #[test]
    fn damage_is_no_panic() {
        for whole in [
            &include_bytes!("../../tests/fixtures/pickles/protocol-0.p")[..],
            include_bytes!("../../tests/fixtures/pickles/protocol-2.p"),
            include_bytes!("../../tests/fixtures/pickles/protocol-4.p"),
        ] {
            for end in 0..whole.len() {
                assert!(Pickle::parse(&whole[..end]).is_err(), "cut at {end}");
            }
            let mut bytes = whole.to_vec();
            for at in 0..whole.len() {
                // A fifth of all values at each place, and all of them at places like it.
                for value in (at as u8 % 5..=255).step_by(5) {
                    bytes[at] = value;
                    let _ = crate::dataset::parse_refs(&bytes, "refs.p".as_ref());
                }
                bytes[at] = whole[at];
            }
        }
    }
}
